r"""The quadratic biases J of a problem, stored as they come: dense, sparse, block-diagonal or low rank.

Every kind is a symmetric matrix with zero diagonal and answers the same few questions, so that `value` and the
solvers never build the n x n matrix behind the caller's back.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any, Protocol

import numpy as np

from ._arrays import SYMMETRY, Floats, Indices, csr_arrays, floats, symmetric_sparse
from ._errors import InvalidProblem


class Coupling(Protocol):
    """What a solver may ask of J (n, n), whatever its storage."""

    n: int

    def product(self, x: Floats) -> Floats:
        """J x for x (n,), or J applied to each row of x (m, n)."""

    def row(self, i: int) -> Floats:
        """Row i of J as a dense (n,) vector."""

    def dense(self) -> Floats:
        """J as an (n, n) array."""

    def pairs(self) -> Iterator[tuple[Indices, Indices, Floats]]:
        """Pieces (i, j, J_ij) with i < j that together cover every nonzero entry once."""

    def magnitude(self) -> float:
        """sum_{i<j} |J_ij|, or a bound on it from above."""

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The arrays that store J, by name."""


def _symmetric(name: str, matrix: Any) -> Floats:
    """A read-only symmetric copy with zero diagonal."""
    array = floats(name, matrix, (None, None))
    rows, columns = array.shape
    if rows != columns:
        raise InvalidProblem(f"{name}: expected a square matrix, got {array.shape}")
    if np.diagonal(array).any():
        at = int(np.flatnonzero(np.diagonal(array))[0])
        raise InvalidProblem(
            f"{name}: diagonal entry {array[at, at]} at {at}; since x_i x_i = x_i, add the diagonal to `linear`"
        )
    if not np.array_equal(array, array.T):
        with np.errstate(over="ignore"):
            worst = np.abs(array - array.T).max()
        if worst > SYMMETRY * np.abs(array).max():
            raise InvalidProblem(
                f"{name}: not symmetric (largest difference {worst:.3g}); an upper triangle Q becomes Q + Q.T"
            )
        # halves first: the sum of two entries may be past the float64 range
        array = array / 2 + array.T / 2
        array.setflags(write=False)
    return array


def _triangle(matrix: Floats, first: int) -> Iterator[tuple[Indices, Indices, Floats]]:
    for i in range(len(matrix) - 1):
        j = np.flatnonzero(matrix[i, i + 1 :]) + i + 1
        yield np.full(len(j), first + i), first + j, matrix[i, j]


@dataclass(frozen=True, eq=False)
class Dense:
    """J as one (n, n) array."""

    matrix: Floats

    def __post_init__(self) -> None:
        object.__setattr__(self, "matrix", _symmetric("quadratic", self.matrix))

    @property
    def n(self) -> int:
        """Number of variables."""
        return len(self.matrix)

    def product(self, x: Floats) -> Floats:
        """J x."""
        return x @ self.matrix

    def row(self, i: int) -> Floats:
        """Row i."""
        return self.matrix[i]

    def dense(self) -> Floats:
        """The matrix itself."""
        return self.matrix

    def pairs(self) -> Iterator[tuple[Indices, Indices, Floats]]:
        """Row by row."""
        return _triangle(self.matrix, 0)

    def magnitude(self) -> float:
        """sum_{i<j} |J_ij|."""
        return float(np.abs(self.matrix).sum() / 2)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """The matrix."""
        return {"matrix": self.matrix}


class Sparse:
    """J as a scipy CSR matrix.

    Parameters
    ----------
    matrix : (n, n) scipy sparse
        Symmetric, zero diagonal.
    """

    def __init__(self, matrix: Any) -> None:
        csr = symmetric_sparse("quadratic", matrix, remedy="since x_i x_i = x_i, add it to `linear`")
        self.matrix = csr
        self.n = int(csr.shape[0])

    def product(self, x: Floats) -> Floats:
        """J x."""
        return np.asarray((self.matrix @ x.T).T)

    def row(self, i: int) -> Floats:
        """Row i as a dense vector."""
        dense = np.zeros(self.n)
        span = slice(self.matrix.indptr[i], self.matrix.indptr[i + 1])
        dense[self.matrix.indices[span]] = self.matrix.data[span]
        return dense

    def dense(self) -> Floats:
        """J as an array."""
        return np.asarray(self.matrix.toarray())

    def pairs(self) -> Iterator[tuple[Indices, Indices, Floats]]:
        """All entries above the diagonal at once."""
        entries = self.matrix.tocoo()
        upper = entries.row < entries.col
        yield entries.row[upper].astype(np.int64), entries.col[upper].astype(np.int64), entries.data[upper]

    def magnitude(self) -> float:
        """sum_{i<j} |J_ij|."""
        return float(np.abs(self.matrix.data).sum() / 2)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """indptr, indices, data."""
        return csr_arrays(self.matrix)


class Blocks:
    """Block-diagonal J: dense symmetric blocks over contiguous index ranges that cover all n variables.

    Parameters
    ----------
    blocks : sequence of (n_b, n_b) arrays
        Symmetric, zero diagonal.

    Examples
    --------
    >>> Blocks([[[0, 1], [1, 0]], [[0]]]).dense()
    array([[0., 1., 0.],
           [1., 0., 0.],
           [0., 0., 0.]])
    """

    def __init__(self, blocks: Sequence[Any]) -> None:
        self.blocks: tuple[Floats, ...] = tuple(_symmetric(f"quadratic block {b}", m) for b, m in enumerate(blocks))
        self.sizes: Indices = np.array([len(m) for m in self.blocks], dtype=np.int64)
        self.starts: Indices = np.concatenate([[0], np.cumsum(self.sizes)]).astype(np.int64)
        self.n = int(self.starts[-1])

    @cached_property
    def block_of(self) -> Indices:
        """(n,) block of each variable."""
        return np.repeat(np.arange(len(self.blocks)), self.sizes)

    def _spans(self) -> Iterator[tuple[slice, Floats]]:
        for b, matrix in enumerate(self.blocks):
            yield slice(int(self.starts[b]), int(self.starts[b + 1])), matrix

    def product(self, x: Floats) -> Floats:
        """J x, block by block."""
        out = np.empty(x.shape, dtype=np.float64)
        for span, matrix in self._spans():
            out[..., span] = x[..., span] @ matrix
        return out

    def row(self, i: int) -> Floats:
        """Row i as a dense vector."""
        dense = np.zeros(self.n)
        b = int(self.block_of[i])
        dense[self.starts[b] : self.starts[b + 1]] = self.blocks[b][i - self.starts[b]]
        return dense

    def dense(self) -> Floats:
        """J as an array."""
        out = np.zeros((self.n, self.n))
        for span, matrix in self._spans():
            out[span, span] = matrix
        return out

    def pairs(self) -> Iterator[tuple[Indices, Indices, Floats]]:
        """Row by row of each block."""
        for span, matrix in self._spans():
            yield from _triangle(matrix, span.start)

    def magnitude(self) -> float:
        """sum_{i<j} |J_ij|."""
        return float(sum(np.abs(m).sum() for m in self.blocks) / 2)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """All blocks row by row, and their sizes."""
        flat = [m.ravel() for m in self.blocks]
        return {"blocks": np.concatenate(flat) if flat else np.zeros(0), "sizes": self.sizes}


class LowRank:
    """J_ij = sign (F F')_ij for i != j, 0 on the diagonal.

    Parameters
    ----------
    F : (n, r) array
        Factors.
    sign : {1, -1}
        1 penalises keeping similar units together, -1 rewards it.

    Examples
    --------
    >>> LowRank([[1.0], [2.0]]).dense()
    array([[0., 2.],
           [2., 0.]])
    """

    def __init__(self, F: Any, sign: int = 1) -> None:
        if sign not in (1, -1):
            raise InvalidProblem(f"LowRank.sign: expected 1 or -1, got {sign!r}")
        self.F: Floats = floats("LowRank.F", F, (None, None))
        self.sign = int(sign)
        self.n = len(self.F)

    @cached_property
    def square(self) -> Floats:
        """(n,) |F_i|^2, what the zero diagonal takes away."""
        return np.einsum("ir,ir->i", self.F, self.F)

    def product(self, x: Floats) -> Floats:
        """Sign (F (F' x) - |F_i|^2 x)."""
        return self.sign * ((x @ self.F) @ self.F.T - x * self.square)

    def row(self, i: int) -> Floats:
        """Row i as a dense vector."""
        row = self.sign * (self.F @ self.F[i])
        row[i] = 0.0
        return row

    def dense(self) -> Floats:
        """J as an array."""
        matrix = self.sign * (self.F @ self.F.T)
        np.fill_diagonal(matrix, 0.0)
        return (matrix + matrix.T) / 2

    def pairs(self) -> Iterator[tuple[Indices, Indices, Floats]]:
        """Row by row."""
        for i in range(self.n - 1):
            j = np.arange(i + 1, self.n)
            yield np.full(len(j), i), j, self.sign * (self.F[i + 1 :] @ self.F[i])

    def magnitude(self) -> float:
        """A bound on sum_{i<j} |J_ij| through |F_i . F_j| <= |F_i| |F_j|."""
        return float(np.sqrt(self.square).sum() ** 2 / 2)

    def arrays(self) -> dict[str, np.ndarray[Any, Any]]:
        """F and the sign."""
        return {"F": self.F, "sign": np.array(self.sign)}


def from_pairs(n: int, i: Any, j: Any, biases: Any) -> Any:
    """J (n, n) from pairs (i, j, bias), repeated ones added: dense while that is small or one in twenty is nonzero.

    Text readers come through here, so scipy is loaded for large sparse instances alone.
    """
    if n <= 1024 or 2 * len(biases) > 0.05 * n * n:
        flat = np.bincount(i * n + j, weights=biases, minlength=n * n)
        matrix = flat.astype(np.float64, copy=False).reshape(n, n)
        return matrix + matrix.T
    from scipy import sparse

    upper = sparse.coo_array((biases, (i, j)), shape=(n, n))
    return (upper + upper.T).tocsr()


AnyCoupling = Dense | Sparse | Blocks | LowRank


def coupling(quadratic: Any) -> AnyCoupling:
    """The storage that fits what the caller gave: array, scipy sparse, Blocks or LowRank."""
    if isinstance(quadratic, (Dense, Sparse, Blocks, LowRank)):
        return quadratic
    # hasattr instead of scipy.sparse.issparse: the dense path must not load scipy
    if hasattr(quadratic, "tocsr"):
        return Sparse(quadratic)
    return Dense(quadratic)
