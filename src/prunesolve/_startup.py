"""What a short command would wait for in other libraries and does not need; for our own process only (`cli.main`)."""

from __future__ import annotations

import inspect
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from types import NoneType
from typing import Any, NamedTuple, get_args, get_origin, get_type_hints

_READS = (str, int, float, Path)


class NoBlasForNumba:
    """A finder that hides scipy.linalg from numba while that starts, and from nobody else.

    numba imports it then, 60 ms, to learn whether its np.convolve and the like may call BLAS. Whatever needs BLAS asks
    again when it is compiled, and finds it.
    """

    @staticmethod
    def find_spec(name: str, path: Any = None, target: Any = None) -> None:
        """Never finds anything; refuses scipy.linalg while numba.np.arraymath is on its way in."""
        if name == "scipy.linalg" and _loading("numba.np.arraymath"):
            raise ModuleNotFoundError(f"{name} is not asked for BLAS here", name=name)


def _loading(module: str) -> bool:
    spec = getattr(sys.modules.get(module), "__spec__", None)
    return bool(getattr(spec, "_initializing", False))


class _Parameter(NamedTuple):
    name: str
    reads: type[Any]
    several: bool


def plain_arguments(command: Callable[..., Any], words: Sequence[str]) -> dict[str, Any] | None:
    """The arguments that `words` give a typer command with one positional argument, read without typer.

    typer loads pydantic to read a number, 70 ms. Anything unusual, wrong or asking for help is left to it: None.

    Parameters
    ----------
    command : callable
        Parameters annotated with `typer.Argument` and `typer.Option`.
    words : sequence of str
        The command line after the command's name.
    """
    positional, flags = _declared(command)
    found: dict[str, Any] = {}
    rest = iter(words)
    try:
        for word in rest:
            flag, equals, value = word.partition("=")
            taken = flags[flag] if word.startswith("-") else positional
            if taken is not positional and taken.reads is not bool and not equals:
                value = next(rest)
            _add(found, taken, word if taken is positional else value, bool(equals))
    except (KeyError, ValueError, StopIteration):
        return None
    return found if positional.name in found else None


def _add(found: dict[str, Any], taken: _Parameter, value: str, given: bool) -> None:
    """Read one value; ValueError where it is not plain."""
    if taken.name in found and not taken.several:
        raise ValueError
    if taken.reads is bool:
        if given:
            raise ValueError
        found[taken.name] = True
        return
    if taken.reads not in _READS or value.startswith("-"):
        raise ValueError
    read = taken.reads(value)
    found[taken.name] = [*found.get(taken.name, ()), read] if taken.several else read


def _declared(command: Callable[..., Any]) -> tuple[_Parameter, dict[str, _Parameter]]:
    """The positional argument, and the options by their flags."""
    positional, flags = None, {}
    hints = get_type_hints(command, include_extras=True)
    for name in inspect.signature(command).parameters:
        kind, declared = get_args(hints[name])
        reads, several = _read_as(kind)
        parameter = _Parameter(name, reads, several)
        # typer takes the first flag for a default until it sees that it came with `Annotated`
        words = (declared.default, *(declared.param_decls or ()))
        written = [word for word in words if isinstance(word, str) and word.startswith("-")]
        flags.update(dict.fromkeys(written, parameter))
        if not written:
            positional = parameter
    if positional is None:
        raise TypeError(f"{command.__name__}: expected one positional argument, got none")
    return positional, flags


def _read_as(kind: Any) -> tuple[type[Any], bool]:
    """What reads one value of an annotation such as `int | None` or `list[str]`, and whether it takes several."""
    kind = next(_alternatives(kind))
    return (get_args(kind)[0], True) if get_origin(kind) is list else (kind, False)


def _alternatives(kind: Any) -> Iterator[Any]:
    members = (kind,) if get_origin(kind) is list else get_args(kind) or (kind,)
    return (member for member in members if member is not NoneType)
