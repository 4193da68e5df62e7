"""Where an instance of a campaign comes from: enough to make the problem again, here or on another machine."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, ClassVar

from prunesolve.instances import keeping
from prunesolve.problems import InvalidProblem, generators, library
from prunesolve.problems.readers import read

# what may be named as `generator`; a test holds it against the module
GENERATORS = ("pruning", "qubo", "palubeckis", "quadratic_knapsack", "max_diversity")


@dataclass(frozen=True)
class Source:
    """An instance that can be made at any time; what it says is JSON-able.

    Parameters
    ----------
    name : str
        What rows call it.
    keep : int, float or None
        Replaces the cardinality.
    best_known : float or None
        Least value known, to be minimised; by default what the instance itself says.
    """

    kind: ClassVar[str]

    name: str
    keep: int | float | None = None
    best_known: float | None = None

    def content(self) -> bytes | None:
        """What must be sent to make the problem elsewhere; None where every machine can make it."""
        return None

    def problem(self, content_path: Path | None = None) -> Any:
        """The problem, made of the content that lies at `content_path`, where it was sent."""
        return keeping(self._made(content_path), self.keep)

    def digest(self, content: bytes | None) -> str:
        """64 hex digits which two sources share only if their problems are the same."""
        text = json.dumps([self.kind, self._decides()], sort_keys=True).encode()
        return hashlib.sha256(text + b"\n" + (content or b"")).hexdigest()

    @property
    def unread(self) -> str:
        """The digest of an instance that cannot be read, which is known by its name alone."""
        return hashlib.sha256(f"unread {self.name}".encode()).hexdigest()

    def told(self) -> dict[str, Any]:
        """The source as JSON takes it; `source_of` makes it again."""
        return {"kind": self.kind} | asdict(self)

    def _made(self, content_path: Path | None) -> Any:
        raise NotImplementedError

    def _decides(self) -> dict[str, Any]:
        """What decides, beside the content, which problem it is."""
        return {"keep": self.keep}


@dataclass(frozen=True)
class FileSource(Source):
    """An instance in a file; `index` counts from 1 where it holds several."""

    kind = "file"

    path: str = ""
    index: int | None = None
    format: str = "auto"

    def content(self) -> bytes:
        """The file's bytes."""
        try:
            return Path(self.path).read_bytes()
        except OSError as error:
            raise InvalidProblem(f"{self.path}: {(error.strerror or str(error)).lower()}") from None

    def _made(self, content_path: Path | None) -> Any:
        problem = read(content_path or self.path, format=self.format, index=self.index)
        # the content may lie under another name where it was sent
        return problem if content_path is None else problem.replace(meta=problem.meta | {"name": Path(self.path).stem})

    def _decides(self) -> dict[str, Any]:
        # the suffix says how the content is read
        return super()._decides() | {"index": self.index, "format": self.format, "suffix": Path(self.path).suffix}


@dataclass(frozen=True)
class LibrarySource(Source):
    """An instance that comes with the package."""

    kind = "library"

    entry: str = ""

    def _made(self, content_path: Path | None) -> Any:
        return library.load(self.entry)

    def _decides(self) -> dict[str, Any]:
        return super()._decides() | {"entry": self.entry, "hash": library.about(self.entry)["hash"]}


@dataclass(frozen=True)
class GeneratorSource(Source):
    """A synthetic instance: a function of `problems.generators` and its arguments."""

    kind = "generator"

    generator: str = ""
    arguments: Mapping[str, Any] = field(default_factory=dict)

    def _made(self, content_path: Path | None) -> Any:
        return getattr(generators, self.generator)(**self.arguments)

    def _decides(self) -> dict[str, Any]:
        return super()._decides() | {"generator": self.generator, "arguments": dict(self.arguments)}


def source_of(told: Mapping[str, Any]) -> Source:
    """The source that `told` describes."""
    kinds = {cls.kind: cls for cls in (FileSource, LibrarySource, GeneratorSource)}
    return kinds[told["kind"]](**{k: v for k, v in told.items() if k != "kind"})
