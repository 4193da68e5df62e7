"""Compiled searches. Nothing else in the room knows numba.

`load(kernel)` imports a compiled entry point, `view(problem)` lays a problem out for it. Machine code is kept on disk
in a folder named after the content of these sources: numba's own index watches only the file of the entry point and
would go on running a changed helper's old code.
"""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from importlib import import_module
from pathlib import Path
from typing import Any, NamedTuple
from weakref import WeakKeyDictionary

import numpy as np

from prunesolve.problems import BinaryQuadratic, Blocks, Budget, Cardinality, GroupBounds, LowRank, Sparse

_UNITS = 64  # units in a chunk of `drop_add`
_LARGE = 1 << 21  # bytes from which couplings are stored in single precision; less stays in cache as it is
_SPREAD = 1e4  # largest over typical coupling up to which rounding to 6e-8 of the largest is harmless
_SINGLE: WeakKeyDictionary[BinaryQuadratic, bool] = WeakKeyDictionary()
_VIEWS: WeakKeyDictionary[BinaryQuadratic, dict[bool, View]] = WeakKeyDictionary()
_LOG = logging.getLogger("prunesolve")
_HERE = Path(__file__).parent


class View(NamedTuple):
    """A problem laid out for the kernels."""

    couplings: Any
    linear: Any
    limits: Any


# --- loading -------------------------------------------------------------------------------------------------------


def load(module: str) -> Any:
    """The kernel module of that name, its machine code taken from disk where it is there."""
    name = f"{__name__}.{module}"
    if name not in sys.modules:
        with _cache_folder():
            import_module(name)
    return sys.modules[name]


@contextmanager
def telling(what: str) -> Iterator[None]:
    """Say once what is being compiled, if anything has to be."""
    from numba.core import event

    class Tell(event.Listener):
        told = False

        def on_start(self, event: Any) -> None:
            if not self.told:
                self.told = True
                _LOG.warning("compiling the %s kernels for this machine, once; this takes some seconds", what)

        def on_end(self, event: Any) -> None:
            pass

    with event.install_listener("numba:compile", Tell()):
        yield


@contextmanager
def _cache_folder() -> Iterator[None]:
    """The folder numba keeps machine code in, while decorators run; they remember it."""
    from numba import config

    # numba sets its options on the module when it is imported, unseen by type checkers
    options = vars(config)
    before = options["CACHE_DIR"]
    options["CACHE_DIR"] = str(_folder(before))
    try:
        yield
    finally:
        options["CACHE_DIR"] = before


def _folder(chosen: str) -> Path:
    digest = hashlib.sha256()
    for source in sorted(_HERE.glob("*.py")):
        digest.update(source.read_bytes())
    name = f"kernels-{digest.hexdigest()[:16]}"
    home = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache")
    for parent in (Path(chosen) if chosen else None, _HERE / "__pycache__", home / "prunesolve"):
        if parent is not None and _writable(parent / name):
            return parent / name
    import tempfile

    return Path(tempfile.mkdtemp(prefix="prunesolve-"))


def _writable(folder: Path) -> bool:
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return False
    return os.access(folder, os.W_OK)


# --- a problem laid out --------------------------------------------------------------------------------------------


def kind(problem: BinaryQuadratic) -> str:
    """How the couplings are stored, in a word."""
    words = {Sparse: "sparse", Blocks: "block-diagonal"}
    return "low-rank" if factored(problem) else words.get(type(problem.couplings), "dense")


def factored(problem: BinaryQuadratic) -> bool:
    """Whether factors stay factors: up to eight times their numbers the matrix is laid out, and its rows are read."""
    return isinstance(problem.couplings, LowRank) and problem.n > 8 * problem.couplings.F.shape[1]


def tiny(problem: BinaryQuadratic) -> BinaryQuadratic:
    """A problem of two units with couplings and constraints of the same kind: running it compiles what is needed."""
    couplings: Any = np.zeros((2, 2))
    if isinstance(problem.couplings, Sparse):
        from scipy import sparse

        couplings = sparse.csr_array((2, 2))
    elif isinstance(problem.couplings, Blocks):
        couplings = Blocks([np.zeros((2, 2))])
    elif factored(problem):
        couplings = LowRank(np.zeros((2, 0)))
    limits = [Cardinality(1)] if loose(problem) else [Cardinality(1), Budget(np.ones(2), 2.0)]
    small = BinaryQuadratic(np.array([-1.0, -2.0]), couplings, constraints=limits)
    _SINGLE[small] = single(problem)
    return small


def single(problem: BinaryQuadratic) -> bool:
    """Whether the couplings are stored in single precision: where they are large and rounding them is harmless."""
    known = _SINGLE.get(problem)
    if known is None:
        known = _SINGLE[problem] = _size(problem) > _LARGE and all(map(_harmless, _stored(problem)))
    return known


def _stored(problem: BinaryQuadratic) -> list[Any]:
    given = problem.couplings
    if isinstance(given, Sparse):
        return [given.matrix.data]
    if isinstance(given, Blocks):
        return [block for block in given.blocks if block.size]
    return [given.F if isinstance(given, LowRank) else given.matrix]


def _size(problem: BinaryQuadratic) -> int:
    return sum(array.nbytes for array in _stored(problem))


def _harmless(array: Any) -> bool:
    largest = max(float(array.max(initial=0.0)), -float(array.min(initial=0.0)))
    typical = float(np.abs(array.ravel()[:: 1 + array.size // 10_000]).mean()) if array.size else 0.0
    return 1e-30 < largest < 1e30 and largest <= _SPREAD * typical


def loose(problem: BinaryQuadratic) -> bool:
    """Whether `drop_add` serves: no constraint, or a cardinality with groups that are seldom at a bound."""
    groups = problem.of_kind(GroupBounds)
    if not problem.constraints or problem.of_kind(Budget):
        return not problem.constraints
    return problem.k is not None and all(_leaves_room(bounds, problem.k, problem.n) for bounds in groups)


def _leaves_room(bounds: GroupBounds, k: int, n: int) -> bool:
    """Whether at most half of what is kept is bound from below, and at most half of what is dropped from above."""
    least = int(np.maximum(bounds.low, 0).sum())
    barred = int(np.maximum(bounds.sizes - bounds.high, 0).sum())
    return 2 * least <= k and 2 * barred <= n - k


def view(problem: BinaryQuadratic, *, sums: bool = False) -> View:
    """Arrays of the problem in the types the kernels were compiled for; `sums` keeps z = F'x of a low rank, no fields.

    Large couplings are stored in single precision where that is harmless: a search waits for rows from memory. Fields
    and values are sums in double precision, and every solution offered is valued from the problem itself. A view is
    laid out once for as long as the problem lives.
    """
    known = _VIEWS.setdefault(problem, {})
    sums = sums and factored(problem)
    if sums not in known:
        known[sums] = View(_couplings(problem, sums), _frozen(problem.linear), _limits(problem))
    return known[sums]


def state(seen: View, x: Any) -> Any:
    """A search state at x (n,); counts and fields are still to be computed."""
    from .limits import State

    n, limits = len(seen.linear), seen.limits
    partitions, budgets = len(limits.part), len(limits.limit)
    width = seen.couplings.factor.shape[1] if type(seen.couplings).__name__ == "Factored" else n
    return State(
        x=np.array(x, dtype=bool),
        f=np.zeros(width),
        count=np.zeros(len(limits.low), dtype=np.int64),
        order=np.zeros((partitions, n), dtype=np.int32),
        place=np.zeros((partitions, n), dtype=np.int32),
        spent=np.zeros(budgets),
        load=np.zeros((budgets, n)),
    )


def scan(seen: View) -> Any:
    """Chunks of the units for `drop_add`: within the blocks of a block-diagonal matrix, of even size otherwise."""
    from .drop_add import Scan

    n, couplings = len(seen.linear), seen.couplings
    stored = type(couplings).__name__
    if stored == "Blocks":
        cut = np.concatenate(
            [np.arange(s, s + m, _UNITS) for s, m in zip(couplings.start, couplings.size, strict=True)]
        )
    else:
        cut = np.arange(0, n, _UNITS)
    cut = np.append(cut, n).astype(np.int64)
    m = len(cut) - 1
    return Scan(
        cut=cut,
        chunk_of=np.repeat(np.arange(m, dtype=np.int32), np.diff(cut)),
        leave=np.zeros(n),
        enter=np.zeros(n),
        most=np.zeros(m),
        least=np.zeros(m),
        tried=np.zeros(m),
        held=np.zeros(n, dtype=np.int32),
        count=np.zeros(2, dtype=np.int64),
        stale=np.zeros(m, dtype=bool),
        shut=np.zeros((2, len(seen.limits.low)), dtype=bool),
        tight=np.zeros(len(seen.limits.low) + 1, dtype=np.int32),
        listed=np.zeros((2, m), dtype=np.int32),
        scratch=np.zeros((2, n)),
    )


def _frozen(array: Any, dtype: Any = np.float64) -> Any:
    """C-ordered and read-only: numba compiles anew for every other layout."""
    array = np.asarray(array, dtype=dtype)
    # a Fortran-ordered symmetric matrix read by columns is itself
    view = np.ascontiguousarray(array).view()
    view.setflags(write=False)
    return view


def _couplings(problem: BinaryQuadratic, sums: bool) -> Any:
    from . import couplings as stored

    given = problem.couplings
    dtype = np.float32 if single(problem) else np.float64
    if isinstance(given, Sparse):
        csr = given.matrix
        return stored.Csr(_frozen(csr.indptr, np.int64), _frozen(csr.indices, np.int32), _frozen(csr.data, dtype))
    if isinstance(given, Blocks):
        squares = given.sizes * given.sizes
        return stored.Blocks(
            data=_frozen(given.arrays()["blocks"], dtype),
            start=_frozen(given.starts[:-1], np.int64),
            size=_frozen(given.sizes, np.int64),
            offset=_frozen(np.cumsum(squares) - squares, np.int64),
            block_of=_frozen(given.block_of, np.int64),
        )
    if isinstance(given, LowRank) and not factored(problem):
        return stored.Dense(_frozen(given.dense(), dtype))
    if isinstance(given, LowRank):
        cls = stored.Factored if sums else stored.LowRank
        return cls(_frozen(given.F, dtype), _frozen(given.square), float(given.sign))
    matrix = given.matrix
    return stored.Dense(_frozen(matrix.T if matrix.flags.f_contiguous else matrix, dtype))


def _limits(problem: BinaryQuadratic) -> Any:
    from .limits import Limits

    n = problem.n
    parts, start, size = [np.zeros(n, dtype=np.int64)], [0], [n]
    low, high = ([0], [n]) if problem.k is None else ([problem.k], [problem.k])
    for bounds in problem.of_kind(GroupBounds):
        loose = len(bounds.low)
        part = np.where(bounds.group < 0, loose, bounds.group)
        sizes = np.bincount(part, minlength=loose + 1)
        parts.append(part + len(low))
        low += [*np.maximum(bounds.low, 0), 0]
        high += [*np.minimum(bounds.high, bounds.sizes), n]
        start += [*(np.cumsum(sizes) - sizes)]
        size += [*sizes]
    budgets = [budget.capped for budget in problem.of_kind(Budget)]
    indptr, indices, data = _pairs(budgets, n)
    return Limits(
        part=_frozen(np.stack(parts), np.int32),
        low=_frozen(low, np.int64),
        high=_frozen(high, np.int64),
        start=_frozen(start, np.int64),
        size=_frozen(size, np.int64),
        cost=_frozen(np.array([b.cost for b in budgets]).reshape(len(budgets), n)),
        # half the tolerance of `Budget.holds`, the other half is for rounding
        limit=_frozen([b.limit + 0.5e-9 * b.scale for b in budgets]),
        indptr=_frozen(indptr, np.int64),
        indices=_frozen(indices, np.int32),
        data=_frozen(data),
    )


def _pairs(budgets: list[Budget], n: int) -> tuple[Any, Any, Any]:
    """Pair costs of all budgets as one set of compressed rows, (b, n + 1) row pointers into it."""
    indptr = np.zeros((len(budgets), n + 1), dtype=np.int64)
    indices, data, total = [np.zeros(0, dtype=np.int32)], [np.zeros(0)], 0
    for b, budget in enumerate(budgets):
        indptr[b] = total
        if budget.pair is not None:
            indptr[b] += budget.pair.indptr
            indices.append(budget.pair.indices)
            data.append(budget.pair.data)
            total += budget.pair.nnz
    return indptr, np.concatenate(indices), np.concatenate(data)


# --- chunks --------------------------------------------------------------------------------------------------------

_CHUNK = 0.005  # seconds


class Pace:
    """How much work a kernel gets per call, so that a call takes about 5 ms; it never changes what is computed.

    Attributes
    ----------
    work : int
        The next portion, in the kernel's own unit.
    """

    def __init__(self, work: int = 20_000) -> None:
        self.work = work

    def learn(self, seconds: float, left: float) -> None:
        """Adapt to what the last full portion took and to the seconds that are left."""
        ratio = min(_CHUNK, max(left, 1e-4)) / max(1e-6, seconds)
        self.work = max(1, int(self.work * min(2.0, ratio)))
