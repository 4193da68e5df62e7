"""Our own files: whole or not at all, no pickle, nothing lost."""

import numpy as np
import pytest
from scipy import sparse

from prunesolve.problems import (
    BinaryQuadratic,
    Blocks,
    Budget,
    Cardinality,
    GroupBounds,
    InvalidProblem,
    LowRank,
    Statistics,
    Unit,
    _npz,
)

PAIR = np.array([[0.0, 1.0, 0.0], [1.0, 0.0, 2.0], [0.0, 2.0, 0.0]])
STORED = {
    "none": None,
    "dense": PAIR,
    "sparse": sparse.csr_array(PAIR),
    "blocks": Blocks([[[0.0, 1.0], [1.0, 0.0]], [[0.0]]]),
    "no blocks": Blocks([]),
    "low-rank": LowRank([[1.0, 0.1], [2.0, 0.2], [3.0, 0.3]], sign=-1),
}


@pytest.mark.parametrize("kind", STORED)
def test_a_problem_comes_back_with_the_same_hash(kind, tmp_path):
    n = 0 if kind == "no blocks" else 3
    problem = BinaryQuadratic(
        np.linspace(-1, 1, n),
        STORED[kind],
        offset=0.1,
        constraints=[
            Cardinality(min(1, n)),
            GroupBounds([0, 0, -1][:n], [0], [2]),
            Budget([1.0, 2.0, 3.0][:n], 9.0, PAIR[:n, :n]),
            Budget(np.ones(n), 4.0),
        ],
        labels=[Unit("conv", 1), ("a", ("b", 2)), 7][:n],
        diagonal=np.zeros(n),
        meta={"name": "three", "best": np.float64(-2.5)},
    )
    problem.save(tmp_path / "problem.npz")
    back = BinaryQuadratic.load(tmp_path / "problem.npz")
    assert back.hash == problem.hash
    assert back.labels == problem.labels
    assert back.meta == {"name": "three", "best": -2.5}
    x = np.array([True, False, True][:n])
    assert back.value(x) == problem.value(x)
    assert back.violation(x) == problem.violation(x)


def test_large_arrays_are_stored_as_they_are(tmp_path, monkeypatch):
    problem = BinaryQuadratic(np.zeros(64), np.ones((64, 64)) - np.eye(64))
    problem.save(tmp_path / "small.npz")
    monkeypatch.setattr(_npz, "COMPRESS_UP_TO", 1024)
    problem.save(tmp_path / "large.npz")
    assert (tmp_path / "large.npz").stat().st_size > 64 * 64 * 8 > (tmp_path / "small.npz").stat().st_size
    assert BinaryQuadratic.load(tmp_path / "large.npz").hash == problem.hash


def test_a_failure_leaves_nothing_behind(tmp_path):
    def fail() -> None:
        with _npz.whole_file(tmp_path / "half.npz") as file:
            file.write(b"half")
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        fail()
    with pytest.raises(InvalidProblem, match="meta"):
        BinaryQuadratic([0.0], meta={"a": object()}).save(tmp_path / "half.npz")
    assert list(tmp_path.iterdir()) == []


def test_a_file_is_replaced_only_by_a_whole_one(tmp_path):
    path = tmp_path / "problem.npz"
    BinaryQuadratic([1.0]).save(path)
    before = path.read_bytes()
    with pytest.raises(InvalidProblem):
        BinaryQuadratic([2.0], meta={"a": object()}).save(path)
    assert path.read_bytes() == before


@pytest.mark.parametrize("share", [0.0, 0.1, 0.5, 0.9, 0.99])
def test_a_truncated_file_is_refused(share, tmp_path):
    path = tmp_path / "cut.npz"
    BinaryQuadratic(np.arange(50.0), np.ones((50, 50)) - np.eye(50)).save(path)
    content = path.read_bytes()
    path.write_bytes(content[: int(share * len(content))])
    with pytest.raises(InvalidProblem, match="truncated or foreign"):
        BinaryQuadratic.load(path)
    assert _npz.kind_of(path) is None


def test_damage_within_a_file_is_refused(tmp_path):
    path = tmp_path / "damaged.npz"
    BinaryQuadratic(np.arange(50.0), np.ones((50, 50)) - np.eye(50)).save(path)
    content = bytearray(path.read_bytes())
    content[len(content) // 3] ^= 0xFF
    path.write_bytes(content)
    with pytest.raises(InvalidProblem):
        BinaryQuadratic.load(path)


class Trap:
    """Would leave a trace if it were ever unpickled."""

    def __reduce__(self):
        return (open, ("unpickled", "w"))


def test_pickles_are_never_opened(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    path = tmp_path / "pickle.npz"
    trap = np.array([Trap()], dtype=object)
    np.savez(path, format=np.array(_npz.FORMAT), kind=np.array("binary-quadratic"), linear=trap)
    with pytest.raises(InvalidProblem, match="pickles"):
        BinaryQuadratic.load(path)
    assert not (tmp_path / "unpickled").exists()


@pytest.mark.parametrize("make", ["npz", "npy", "text", "folder"])
def test_foreign_files_are_refused(make, tmp_path):
    path = tmp_path / "foreign.npz"
    if make == "npz":
        np.savez(path, a=np.zeros(2))
    elif make == "npy":
        with path.open("wb") as file:
            np.save(file, np.zeros(2))
    elif make == "text":
        path.write_text("1 2 3")
    else:
        path.mkdir()
    with pytest.raises(InvalidProblem, match="expected"):
        BinaryQuadratic.load(path)
    assert _npz.kind_of(path) is None


def test_a_file_of_another_kind_says_which(tmp_path):
    path = tmp_path / "stats.npz"
    Statistics([]).save(path)
    assert _npz.kind_of(path) == "statistics"
    with pytest.raises(InvalidProblem, match="'binary-quadratic', got 'statistics'"):
        BinaryQuadratic.load(path)


def test_a_missing_file_is_missing(tmp_path):
    with pytest.raises(FileNotFoundError):
        BinaryQuadratic.load(tmp_path / "none.npz")


def arrays_of(problem: BinaryQuadratic, tmp_path) -> dict[str, np.ndarray]:
    problem.save(tmp_path / "whole.npz")
    return _npz.read(tmp_path / "whole.npz", "binary-quadratic")


@pytest.mark.parametrize("missing", ["linear", "offset", "coupling", "meta", "quadratic.indices", "constraint0.limit"])
def test_a_missing_array_is_a_damaged_file(missing, tmp_path):
    arrays = arrays_of(BinaryQuadratic(np.zeros(3), STORED["sparse"], constraints=[Budget(np.ones(3), 2.0)]), tmp_path)
    del arrays[missing]
    _npz.write(tmp_path / "less.npz", "binary-quadratic", arrays)
    with pytest.raises(InvalidProblem, match="less.npz.*missing or damaged"):
        BinaryQuadratic.load(tmp_path / "less.npz")


@pytest.mark.parametrize(
    "name", ["coupling", "constraint0.kind", "quadratic.indices", "quadratic.indptr", "meta", "linear"]
)
def test_a_wrong_array_is_a_damaged_file(name, tmp_path):
    arrays = arrays_of(BinaryQuadratic(np.zeros(3), STORED["sparse"], constraints=[Cardinality(1)]), tmp_path)
    arrays[name] = np.array("other") if arrays[name].dtype.kind == "U" else arrays[name] + 100
    arrays[name] = arrays[name] if name != "linear" else np.zeros(7)
    _npz.write(tmp_path / "wrong.npz", "binary-quadratic", arrays)
    with pytest.raises(InvalidProblem, match="wrong.npz"):
        BinaryQuadratic.load(tmp_path / "wrong.npz")
