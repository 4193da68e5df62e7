"""The caller's data as batches that can be read as often as needed."""

from __future__ import annotations

import logging
import zipfile
from collections.abc import Collection, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from prunesolve.problems import InvalidProblem

from ._forward import as_inputs, run

Inputs = Tensor | tuple[Tensor, ...]

_LIMIT = 2 * 1024**3
_EXPECTED = "expected batches (inputs, targets), inputs a tensor or a tuple of tensors, targets a tensor or None"
_log = logging.getLogger("prunesolve")


class Batches:
    """A re-iterable view of `data`: pairs (inputs, targets), targets None where there are none.

    Parameters
    ----------
    data : iterable of batches, DataLoader, tuple (inputs, targets), tensor or Batches
        A batch is (inputs, targets) or inputs alone; inputs a tensor or a tuple of tensors, samples on the first axis.
        One tuple of whole tensors is cut into batches of `size`; an iterable keeps the batches it yields. A one-shot
        iterator is kept in memory, with a notice on the logger "prunesolve".
    size : int
        Samples a batch where one tuple of tensors is cut.

    Raises
    ------
    InvalidProblem
        If the data yield nothing, are no batches, or a one-shot iterator yields more than 2 GiB.

    Examples
    --------
    >>> batches = Batches((torch.zeros(5, 3), torch.zeros(5, dtype=torch.int64)), size=2)
    >>> [(tuple(inputs.shape), len(targets)) for inputs, targets in batches]
    [((2, 3), 2), ((2, 3), 2), ((1, 3), 1)]
    """

    def __init__(self, data: Any, size: int = 128) -> None:
        self._source: Any = None
        self._classes: frozenset[int] | None = None
        if isinstance(data, Batches):
            self._source, self._classes = data._source, data._classes
        elif _is_whole(data):
            self._source = _cut(*_batch(data), size)
        elif not hasattr(data, "__iter__"):
            raise InvalidProblem(f"data: {_EXPECTED}; got {type(data).__name__}")
        elif iter(data) is data:
            self._source = _kept(data)
        else:
            self._source = data

    def __iter__(self) -> Iterator[tuple[Inputs, Tensor | None]]:
        count = 0
        for batch in self._source:
            inputs, targets = _batch(batch)
            if self._classes is not None:
                inputs, targets = _only(inputs, targets, self._classes)
            if samples(inputs):
                count += 1
                yield inputs, targets
        if count == 0:
            asked = "" if self._classes is None else f" of the classes {sorted(self._classes)}"
            raise InvalidProblem(f"data: expected at least one sample{asked}, got none; hand in a list or a DataLoader")

    def __len__(self) -> int:
        """Number of batches, where the source knows it (TypeError otherwise)."""
        return len(self._source)

    @property
    def in_memory(self) -> bool:
        """Whether the samples are held: whole tensors, a list or a tuple of batches, a one-shot iterator's."""
        return isinstance(self._source, (list, tuple))

    def example(self, count: int = 2) -> Inputs:
        """Inputs of the first `count` samples."""
        inputs, _ = next(iter(self))
        return slice_of(inputs, slice(count))

    def first(self, count: int) -> Batches:
        """The first `count` samples, kept in memory.

        Examples
        --------
        >>> [len(inputs) for inputs, _ in Batches(torch.zeros(5, 3), size=2).first(3)]
        [2, 1]
        """
        taken: list[tuple[Inputs, Tensor | None]] = []
        for inputs, targets in self:
            rows = slice(count - sum(samples(x) for x, _ in taken))
            taken.append((slice_of(inputs, rows), None if targets is None else targets[rows]))
            if sum(samples(x) for x, _ in taken) >= count:
                break
        return Batches(taken)

    def of_classes(self, classes: Collection[int]) -> Batches:
        """The samples whose integer target is one of `classes`.

        Examples
        --------
        >>> data = torch.arange(4.0), torch.tensor([0, 1, 2, 1])
        >>> [inputs.tolist() for inputs, _ in Batches(data).of_classes([1])]
        [[1.0, 3.0]]
        """
        chosen = Batches(self)
        chosen._classes = frozenset(int(c) for c in classes)
        return chosen

    @classmethod
    def from_npz(cls, path: str | Path, size: int = 128) -> Batches:
        """Batches from the arrays `inputs` and `targets` of an `.npz` file; floats become float32.

        Raises
        ------
        FileNotFoundError
            If there is no such file.
        InvalidProblem
            If an array is missing, holds pickled objects, or the file is no `.npz`.
        """
        arrays = _arrays(path)
        return cls((_tensor(arrays["inputs"]), _tensor(arrays["targets"])), size)


def samples(inputs: Inputs) -> int:
    """Number of samples in a batch."""
    return len(inputs if isinstance(inputs, Tensor) else inputs[0])


def slice_of(inputs: Inputs, rows: Any) -> Inputs:
    """Some samples of a batch; `rows` indexes the first axis."""
    return inputs[rows] if isinstance(inputs, Tensor) else tuple(part[rows] for part in inputs)


def call(model: nn.Module, inputs: Inputs) -> Any:
    """The outputs of the model for a batch, brought to the model's device; an error names the layer that raised it."""
    return run(model, as_inputs(model, inputs))


def device_of(model: nn.Module) -> torch.device:
    """Where the model's first parameter lies; the CPU where it has none."""
    first = next(model.parameters(), None)
    return torch.device("cpu") if first is None else first.device


def _is_whole(data: Any) -> bool:
    """Whether `data` is one (inputs, targets) tuple or the inputs themselves, not a sequence of batches."""
    if isinstance(data, (Tensor, np.ndarray)):
        return True
    if not isinstance(data, tuple) or len(data) != 2:
        return False
    return data[1] is None or isinstance(data[1], (Tensor, np.ndarray))


def _batch(batch: Any) -> tuple[Inputs, Tensor | None]:
    """(inputs, targets) of one item of the data, checked."""
    inputs, targets = (batch, None) if isinstance(batch, (Tensor, np.ndarray)) else _pair(batch)
    parts = inputs if isinstance(inputs, (tuple, list)) else (inputs,)
    if not parts or not all(isinstance(p, (Tensor, np.ndarray)) and p.ndim for p in parts):
        raise InvalidProblem(f"data: {_EXPECTED}; got inputs of type {type(inputs).__name__}")
    if targets is not None and not isinstance(targets, (Tensor, np.ndarray)):
        raise InvalidProblem(f"data: {_EXPECTED}; got targets of type {type(targets).__name__}")
    lengths = [len(p) for p in (*parts, *(() if targets is None else (targets,)))]
    if len(set(lengths)) > 1:
        raise InvalidProblem(f"data: inputs and targets of one batch differ in length: {lengths}")
    tensors = tuple(torch.as_tensor(p) for p in parts)
    kept = tensors if isinstance(inputs, (tuple, list)) else tensors[0]
    return kept, None if targets is None else torch.as_tensor(targets)


def _pair(batch: Any) -> tuple[Any, Any]:
    if not isinstance(batch, (tuple, list)) or len(batch) not in (1, 2):
        got = f"{len(batch)} items" if isinstance(batch, (tuple, list)) else type(batch).__name__
        raise InvalidProblem(f"data: {_EXPECTED}; got a batch of {got}. Several inputs go into one tuple")
    return batch[0], batch[1] if len(batch) == 2 else None


def _cut(inputs: Inputs, targets: Tensor | None, size: int) -> list[Any]:
    spans = [slice(start, start + size) for start in range(0, samples(inputs), size)]
    return [(slice_of(inputs, span), None if targets is None else targets[span]) for span in spans]


def _kept(iterator: Iterator[Any]) -> list[Any]:
    """A one-shot iterator's batches, held in memory up to the limit."""
    batches, size = [], 0
    for item in iterator:
        inputs, targets = _batch(item)
        parts = (inputs,) if isinstance(inputs, Tensor) else inputs
        size += sum(t.nbytes for t in (*parts, targets) if t is not None)
        if size > _LIMIT:
            raise InvalidProblem(
                f"data: a one-shot iterator of more than {_LIMIT / 1024**3:g} GiB cannot be kept in memory; "
                "hand in a list or a DataLoader"
            )
        batches.append((inputs, targets))
    _log.warning("data: a one-shot iterator, its %d batches (%.1f MiB) are kept in memory", len(batches), size / 2**20)
    return batches


def _only(inputs: Inputs, targets: Tensor | None, classes: frozenset[int]) -> tuple[Inputs, Tensor]:
    if targets is None or targets.ndim != 1 or targets.is_floating_point():
        got = "none" if targets is None else f"{targets.dtype} of shape {tuple(targets.shape)}"
        raise InvalidProblem(f"classes: expected one integer target for each sample, got {got}")
    rows = torch.isin(targets, torch.tensor(sorted(classes), dtype=targets.dtype, device=targets.device))
    return slice_of(inputs, rows), targets[rows]


def _arrays(path: str | Path) -> dict[str, Any]:
    try:
        with open(path, "rb") as raw, np.load(raw, allow_pickle=False) as file:
            missing = {"inputs", "targets"} - set(getattr(file, "files", ()))
            if missing:
                raise InvalidProblem(f"{path}: expected arrays 'inputs' and 'targets'; missing: {sorted(missing)}")
            return {name: file[name] for name in ("inputs", "targets")}
    except (FileNotFoundError, InvalidProblem):
        raise
    except (ValueError, TypeError, AttributeError, zipfile.BadZipFile, EOFError, OSError) as error:
        raise InvalidProblem(
            f"{path}: expected an .npz of arrays inputs and targets without pickles, got another file ({error})"
        ) from None


def _tensor(array: Any) -> Tensor:
    if array.dtype.kind not in "fiub":
        raise InvalidProblem(f"data: expected arrays of numbers, got {array.dtype}")
    if array.dtype.kind == "f":
        return torch.from_numpy(array.astype(np.float32))
    return torch.from_numpy(array.astype(np.int64) if array.dtype.kind == "u" else array)
