"""The three typed errors of the library, worded as: what was expected, what came, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from numbers import Real
from typing import Any


class InvalidProblem(ValueError):
    """The input describes no problem that could be solved; the message says what to change."""


class UnsupportedProblem(TypeError):
    """The problem is sound, but this solver or file format does not take its kind; the message names one that does."""


class SolverFailed(RuntimeError):
    """A search or a callback raised; `result` holds the incumbent of that moment.

    Parameters
    ----------
    message : str
        What happened.
    result : Result, optional
        The best solution found before the failure.
    """

    def __init__(self, message: str, result: Any = None) -> None:
        super().__init__(message)
        self.result = result


def unknown(kind: str, name: str, known: Iterable[str]) -> InvalidProblem:
    """An error for an unknown `name` that suggests the nearest known one.

    Parameters
    ----------
    kind : str
        What is being named, "solver" say.
    name : str
        The name that came.
    known : iterable of str
        The names there are.

    Returns
    -------
    InvalidProblem
        To be raised by the caller.

    Examples
    --------
    >>> str(unknown("solver", "gredy", ["greedy", "exact"]))
    "unknown solver 'gredy': did you mean 'greedy'? Known: exact, greedy"
    """
    names = sorted(known)
    close = difflib.get_close_matches(name, names, n=1)
    hint = f" did you mean {close[0]!r}?" if close else ""
    return InvalidProblem(f"unknown {kind} {name!r}:{hint} Known: {', '.join(names) or 'none'}")


def check_options(owner: str, given: Mapping[str, Any], defaults: Mapping[str, Any]) -> None:
    """Refuse options that `owner` does not have, and values of another kind than the default.

    Examples
    --------
    >>> check_options("greedy", {"direction": 3}, {"direction": "both"})
    Traceback (most recent call last):
        ...
    prunesolve.problems._errors.InvalidProblem: greedy: expected text as direction, such as 'both', got 3
    """
    for option, value in given.items():
        if option not in defaults:
            raise unknown(f"option of {owner}", option, defaults)
        default = defaults[option]
        for kind, word in ((bool, "True or False"), (str, "text"), (Real, "a number")):
            if isinstance(default, kind):
                if not isinstance(value, kind) or (kind is Real and isinstance(value, bool)):
                    raise InvalidProblem(f"{owner}: expected {word} as {option}, such as {default!r}, got {value!r}")
                break
