"""The campaign file: which instances, solvers, seeds and limits; every mistake is told with its line and key."""

from __future__ import annotations

import fnmatch
import glob
import inspect
import itertools
import math
import os
import re
import tomllib
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from prunesolve import solvers
from prunesolve.instances import LIBRARY
from prunesolve.problems import InvalidProblem, generators, library, unknown
from prunesolve.problems.readers import FORMATS

from .plan import Campaign, Contestant, Limits, Network
from .sources import GENERATORS, FileSource, GeneratorSource, LibrarySource, Source

_TABLES = ("instance", "solver")
_TOP = (
    "name",
    "time_limit",
    "evaluation_limit",
    "memory_limit",
    "kill_after",
    "bound",
    "seeds",
    "repeats",
    *_TABLES,
)
_OF_NETWORK = ("model", "data", "formulation", "options", "layers", "device", "keep", "params", "macs", "name")
_OF_FILE = ("path", "format", "keep", "best_known")
_OF_LIBRARY = ("library", "keep")
_UNITS = {"KB": 1e3, "MB": 1e6, "GB": 1e9, "TB": 1e12, "KIB": 2**10, "MIB": 2**20, "GIB": 2**30, "TIB": 2**40}


def read_campaign(path: str | Path) -> Campaign:
    """The campaign in a TOML file.

    Raises
    ------
    InvalidProblem
        If the file is missing or something in it makes no sense; the message names line and key.

    Examples
    --------
    >>> import tempfile
    >>> file = Path(tempfile.mkdtemp()) / "night.toml"
    >>> _ = file.write_text('''
    ... evaluation_limit = 1000
    ... seeds = [0, 1]
    ... [[instance]]
    ... generator = "max_diversity"
    ... n = [50, 100]
    ... m = 10
    ... [[solver]]
    ... name = "greedy"
    ... ''')
    >>> campaign = read_campaign(file)
    >>> [source.name for source in campaign.sources], campaign.per_instance
    (['max_diversity(n=50, m=10)', 'max_diversity(n=100, m=10)'], 2)
    """
    path = Path(path)
    try:
        text = path.read_text(encoding="utf-8")
        told = tomllib.loads(text)
    except OSError as error:
        raise InvalidProblem(f"{path}: {(error.strerror or str(error)).lower()}; give a campaign file") from None
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise InvalidProblem(f"{path}: expected TOML ({error})") from None
    return _Reader(path, text, told).campaign()


class _Reader:
    """One campaign file on its way to a `Campaign`; knows on which line each key stands."""

    def __init__(self, path: Path, text: str, told: Mapping[str, Any]) -> None:
        self.path, self.text, self.told = path, text, told
        self.lines = _lines(text)

    def campaign(self) -> Campaign:
        self.known(self.told, _TOP, ())
        sources: list[Source] = []
        networks: list[Network] = []
        for i, entry in enumerate(self.tables("instance")):
            at = ("instance", i)
            if "model" in entry:
                networks += self.networks(entry, at)
            else:
                sources += self.sources(entry, at)
        self.once([s.name for s in sources] + [n.name for n in networks])
        return Campaign(
            name=self.value(self.told, (), "name", str, self.path.stem),
            path=self.path,
            text=self.text,
            sources=tuple(sources),
            networks=tuple(networks),
            solvers=self.contestants(),
            seeds=self.seeds(),
            repeats=self.count((), "repeats", 1),
            limits=self.limits(),
        )

    # --- what is asked of all jobs ---

    def limits(self) -> Limits:
        time_limit = self.seconds("time_limit")
        evaluations = self.told.get("evaluation_limit")
        if evaluations is not None:
            evaluations = self.count((), "evaluation_limit", 1)
        if time_limit is None and evaluations is None:
            raise self.wrong((), "time_limit", "expected time_limit or evaluation_limit or both, got neither")
        return Limits(
            time_limit,
            evaluations,
            self.value(self.told, (), "bound", bool, False),
            self.memory(),
            self.seconds("kill_after"),
        )

    def seconds(self, key: str) -> float | None:
        value = self.told.get(key)
        if value is None:
            return None
        if not _is_number(value) or not 0 < value < math.inf:
            raise self.wrong((), key, f"expected seconds > 0, got {value!r}")
        return float(value)

    def memory(self) -> float | None:
        value = self.told.get("memory_limit")
        if value is None:
            return None
        match = (
            re.fullmatch(r"([0-9.]+)\s*([KMGT]i?B)", value.strip(), re.IGNORECASE) if isinstance(value, str) else None
        )
        size = _as_float(match[1]) * _UNITS[match[2].upper()] if match else 0.0
        if not size > 0:
            raise self.wrong((), "memory_limit", f'expected a size such as "2 GiB", got {value!r}')
        return size

    def seeds(self) -> tuple[int, ...]:
        seeds = self.told.get("seeds", [0])
        if not isinstance(seeds, list) or not seeds or not all(_is_count(s) for s in seeds):
            raise self.wrong((), "seeds", f"expected a list of whole numbers >= 0, such as [0, 1, 2], got {seeds!r}")
        if len(set(seeds)) < len(seeds):
            raise self.wrong((), "seeds", f"expected each seed once, got {seeds!r}; `repeats` runs a seed again")
        return tuple(seeds)

    # --- solvers ---

    def contestants(self) -> tuple[Contestant, ...]:
        found: list[Contestant] = []
        for i, entry in enumerate(self.tables("solver")):
            at = ("solver", i)
            name = self.value(entry, at, "name", str)
            options = {key.replace("-", "_"): value for key, value in entry.items() if key not in ("name", "label")}
            with self.located(at, next(iter(options), "name")):
                solver = solvers.get(name, **options)
            label = self.value(entry, at, "label", str, _label(name, options))
            found.append(Contestant(label, name, options, repr(solver)))
        for i, one in enumerate(found):
            same = next((other.label for other in found[:i] if other.repr == one.repr), None)
            if same not in (None, one.label):
                raise self.wrong(
                    ("solver", i), "name", f"the same solver as {same!r}; once is enough, or use `repeats`"
                )
            if one.label in [other.label for other in found[:i]]:
                raise self.wrong(("solver", i), "name", f"{one.label!r} is there twice; give one a `label` or options")
        return tuple(found)

    # --- instances ---

    def sources(self, entry: Mapping[str, Any], at: tuple[str, int]) -> list[Source]:
        if "path" in entry:
            return self.files(entry, at)
        if "library" in entry:
            return self.of_library(entry, at)
        if "generator" in entry:
            return self.generated(entry, at)
        raise self.wrong(at, "path", f"expected path, library, generator or model, got {', '.join(entry) or 'nothing'}")

    def files(self, entry: Mapping[str, Any], at: tuple[str, int]) -> list[Source]:
        self.known(entry, _OF_FILE, at)
        pattern = self.value(entry, at, "path", str)
        file_format = self.value(entry, at, "format", str, "auto")
        if file_format not in FORMATS:
            raise self.wrong(at, "format", str(unknown("format", file_format, FORMATS)))
        pattern, index = self.indexed(pattern)
        home = self.path.parent
        matches = sorted(glob.glob(str(home / pattern), recursive=True)) or sorted(glob.glob(pattern, recursive=True))
        matches = [path for path in matches if Path(path).is_file()]
        if not matches:
            raise self.wrong(
                at, "path", f"no file matches {pattern!r}, neither in {home or '.'} nor in the current folder"
            )
        best = self.number(entry, at, "best_known")
        if best is not None and len(matches) > 1:
            raise self.wrong(at, "best_known", f"expected one file with a best known value, {len(matches)} match")
        found: list[Source] = []
        for keep in self.keeps(entry, at):
            for path in matches:
                name = _shown(path, home) + ("" if index is None else f":{index}") + _kept(keep)
                # absolute, because results are read in other folders than the campaign is run in
                found.append(FileSource(name, keep, best, os.path.abspath(path), index, file_format))
        return found

    def indexed(self, pattern: str) -> tuple[str, int | None]:
        """FILE:k as the file and k."""
        path, colon, digits = pattern.rpartition(":")
        return (path, int(digits)) if colon and digits.isdecimal() else (pattern, None)

    def of_library(self, entry: Mapping[str, Any], at: tuple[str, int]) -> list[Source]:
        self.known(entry, _OF_LIBRARY, at)
        pattern = self.value(entry, at, "library", str).removeprefix(LIBRARY)
        shape = re.compile(fnmatch.translate(pattern))
        names = [name for name in library.names() if shape.fullmatch(name)]
        if not names:
            raise self.wrong(at, "library", str(unknown("library instance", pattern, library.names())))
        keeps = self.keeps(entry, at)
        return [LibrarySource(LIBRARY + name + _kept(keep), keep, None, name) for keep in keeps for name in names]

    def generated(self, entry: Mapping[str, Any], at: tuple[str, int]) -> list[Source]:
        """Every combination of the arguments that are lists."""
        name = self.value(entry, at, "generator", str)
        if name not in GENERATORS:
            raise self.wrong(at, "generator", str(unknown("generator", name, GENERATORS)))
        made = getattr(generators, name)
        given = {key: value for key, value in entry.items() if key != "generator"}
        self.known(given, tuple(inspect.signature(made).parameters), at)
        lists = [value if isinstance(value, list) else [value] for value in given.values()]
        found: list[Source] = []
        for values in itertools.product(*lists):
            arguments = dict(zip(given, values, strict=True))
            with self.located(at, "generator"):
                inspect.signature(made).bind(**arguments)
            shown = ", ".join(f"{key}={value}" for key, value in arguments.items())
            found.append(GeneratorSource(f"{name}({shown})", generator=name, arguments=arguments))
        return found

    def networks(self, entry: Mapping[str, Any], at: tuple[str, int]) -> list[Network]:
        self.known(entry, _OF_NETWORK, at)
        model, formulation = (
            self.value(entry, at, "model", str),
            self.value(entry, at, "formulation", str, "reconstruction"),
        )
        data = self.value(entry, at, "data", str)
        options = self.value(entry, at, "options", dict, {})
        with self.located(at, "formulation"):
            from prunesolve import formulations

            formulations.of_statistics(formulation, **options)
        home = self.path.parent
        file, colon, factory = model.rpartition(":")
        if colon and file.endswith(".py") and (home / file).exists():
            model = f"{home / file}:{factory}"
        data = str(home / data) if (home / data).exists() else data
        layers = entry.get("layers")
        joined = ",".join(layers) if isinstance(layers, list) else layers
        base = self.value(entry, at, "name", str, f"{factory or model}-{formulation}")
        found = []
        for budget in ("keep", "params", "macs"):
            for amount in self.keeps(entry, at, budget) if budget in entry else ():
                if amount is not None:
                    name = f"{base}-{budget}{amount}"
                    device = entry.get("device")
                    found.append(Network(name, model, data, formulation, options, budget, amount, joined, device))
        if not found:
            raise self.wrong(at, "model", "expected keep, params or macs, got none; say how much may stay")
        return found

    def keeps(self, entry: Mapping[str, Any], at: tuple[str, int], key: str = "keep") -> list[int | float | None]:
        """The amounts under a key: one or a list; a fraction is a float, a count an int."""
        value = entry.get(key)
        amounts = value if isinstance(value, list) else [value]
        for amount in amounts:
            if amount is not None and not (_is_number(amount) and amount > 0):
                raise self.wrong(at, key, f"expected a fraction such as 0.5 or a count such as 64, got {amount!r}")
        return amounts

    # --- mistakes ---

    def tables(self, name: str) -> Sequence[Mapping[str, Any]]:
        found = self.told.get(name)
        if not isinstance(found, list) or not found or not all(isinstance(entry, dict) for entry in found):
            raise self.wrong((), name, f"expected at least one table [[{name}]]")
        return found

    def known(self, entry: Mapping[str, Any], names: Sequence[str], at: tuple[Any, ...]) -> None:
        for key in entry:
            if key not in names:
                raise self.wrong(at, key, str(unknown("key", key, names)))

    def value(self, entry: Mapping[str, Any], at: tuple[Any, ...], key: str, kind: type, default: Any = None) -> Any:
        value = entry.get(key, default)
        words = {str: "text", bool: "true or false", dict: "a table"}
        if not isinstance(value, kind):
            raise self.wrong(at, key, f"expected {words[kind]}, got {'nothing' if value is None else repr(value)}")
        return value

    def number(self, entry: Mapping[str, Any], at: tuple[Any, ...], key: str) -> float | None:
        value = entry.get(key)
        if value is not None and not _is_number(value):
            raise self.wrong(at, key, f"expected a number, got {value!r}")
        return None if value is None else float(value)

    def count(self, at: tuple[Any, ...], key: str, default: int) -> int:
        value = self.told.get(key, default)
        if not _is_count(value) or value < 1:
            raise self.wrong(at, key, f"expected a whole number >= 1, got {value!r}")
        return int(value)

    def once(self, names: Sequence[str]) -> None:
        twice = [name for name, count in Counter(names).items() if count > 1]
        if twice:
            raise InvalidProblem(f"{self.path}: the instance {twice[0]!r} is there twice; once is enough")

    @contextmanager
    def located(self, at: tuple[Any, ...], key: str) -> Iterator[None]:
        """A block whose complaint is told with its line and the key that it names, else with `key`."""
        try:
            yield
        except (InvalidProblem, TypeError) as error:
            said = str(error)
            keys = [where[-1] for where in self.lines if where[:-1] == at]
            named = (k for k in keys if re.search(rf"\b{re.escape(k.replace('-', '_'))}\b", said))
            raise self.wrong(at, next(named, key), said) from None

    def wrong(self, at: tuple[Any, ...], key: str, said: str) -> InvalidProblem:
        """An error with the line on which the key stands, or else its table."""
        line = self.lines.get((*at, key)) or self.lines.get(at)
        where = f", line {line}" if line else ""
        table = f"[[{at[0]}]] {at[1] + 1}, " if at else ""
        return InvalidProblem(f"{self.path}{where}: {table}{key}: {said}")


def _lines(text: str) -> dict[tuple[Any, ...], int]:
    """{(table, place, key) or (key,): line}; of the tables themselves too."""
    found: dict[tuple[Any, ...], int] = {}
    counts: dict[str, int] = {}
    at: tuple[Any, ...] = ()
    for number, line in enumerate(text.splitlines(), 1):
        if head := re.match(r"\s*\[\[\s*([\w-]+)\s*\]\]", line):
            counts[head[1]] = counts.get(head[1], -1) + 1
            at = (head[1], counts[head[1]])
            found[at] = number
        elif head := re.match(r"\s*\[\s*([\w-]+)\s*\]", line):
            at = (head[1],)
            found[at] = number
        elif key := re.match(r"\s*[\"']?([\w-]+)[\"']?\s*=", line):
            found.setdefault((*at, key[1]), number)
    return found


def _label(name: str, options: Mapping[str, Any]) -> str:
    """A solver's name, with the options that were given."""
    shown = ", ".join(f"{key}={value}" for key, value in options.items())
    return f"{name}({shown})" if shown else name


def _shown(path: str, home: Path) -> str:
    """A path as seen from the campaign file, where it lies below it."""
    try:
        return Path(path).relative_to(home).as_posix()
    except ValueError:
        return path


def _kept(keep: int | float | None) -> str:
    return "" if keep is None else f"@{keep}"


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 0


def _as_float(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        return 0.0
