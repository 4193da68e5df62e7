"""A drawer of classes by name: listing it loads none of them, a class is imported when it is asked for."""

from __future__ import annotations

from collections.abc import Mapping
from importlib import import_module
from types import MappingProxyType
from typing import Any

from ._errors import InvalidProblem, check_options, unknown


class Registry:
    """The classes of one room, and those that third parties register under the entry-point group of its name.

    Parameters
    ----------
    kind : str
        What an entry is called in messages, "solver" say.
    package : str
        The room, and the entry-point group.
    table : {name: (module, class, sentence)}
        Our own entries; modules are relative to the room.
    base : sequence of str
        Public names of the room's `_base`.
    others : {public name: module}
        Public names of the room's other modules.
    """

    def __init__(
        self,
        kind: str,
        package: str,
        table: Mapping[str, tuple[str, str, str]],
        base: tuple[str, ...],
        others: Mapping[str, str] = MappingProxyType({}),
    ) -> None:
        self.kind, self.package, self.table = kind, package, table
        self.homes = {class_name: module for module, class_name, _ in table.values()}
        self.homes |= dict.fromkeys(base, "_base") | dict(others)

    def attribute(self, name: str) -> Any:
        """What the room answers when asked for an attribute it does not hold."""
        if name not in self.homes:
            raise AttributeError(f"module {self.package!r} has no attribute {name!r}")
        return getattr(import_module(f".{self.homes[name]}", self.package), name)

    def registered(self) -> dict[str, Any]:
        """Entry points of third parties, by name."""
        # loads the whole email package, which a name of our own has no use for
        from importlib.metadata import entry_points

        return {point.name: point for point in entry_points(group=self.package) if point.name not in self.table}

    def names(self) -> list[str]:
        """All names, third parties' last."""
        return [*self.table, *sorted(self.registered())]

    def summaries(self) -> dict[str, str]:
        """{name: a sentence}; third parties' say where they come from."""
        own = {name: sentence for name, (_, _, sentence) in self.table.items()}
        return own | {name: f"From {point.value}." for name, point in sorted(self.registered().items())}

    def class_of(self, name: str) -> type[Any]:
        """The class behind a name; InvalidProblem suggests the nearest where there is none."""
        if name in self.table:
            module, class_name, _ = self.table[name]
            return getattr(import_module(f".{module}", self.package), class_name)
        registered = self.registered()
        if name not in registered:
            raise unknown(self.kind, name, [*self.table, *registered])
        try:
            return registered[name].load()
        except Exception as error:
            point = registered[name].value
            raise InvalidProblem(
                f"{self.kind} {name!r}: its package does not load {point} ({error}); reinstall or remove it"
            ) from error

    def get(self, name: str, options: Mapping[str, Any]) -> Any:
        """An object of the class behind a name, with some options set."""
        cls = self.class_of(name)
        check_options(name, options, cls.options())
        try:
            return cls(**options)
        except InvalidProblem:
            raise
        except (TypeError, ValueError) as error:
            raise InvalidProblem(f"{name}: {error}") from None

    def all(self) -> list[type[Any]]:
        """Our own classes."""
        return [self.class_of(name) for name in self.table]
