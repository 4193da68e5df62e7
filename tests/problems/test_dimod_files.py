""".bqm, .cqm and .lp files: enumerated against dimod's own reading of the same file."""

import itertools

import dimod
import numpy as np
import pytest

from prunesolve.problems import (
    BinaryQuadratic,
    Budget,
    Cardinality,
    GroupBounds,
    InvalidProblem,
    Unit,
    UnsupportedProblem,
)
from prunesolve.problems.readers import native_objective, read, write

MATRIX = np.array([[0, 1.5, 0, -2], [1.5, 0, 0.25, 0], [0, 0.25, 0, 1], [-2, 0, 1, 0]])
PLAIN = BinaryQuadratic([1.0, 0.0, -3.0, 0.125], MATRIX, offset=0.5)
LABELLED = PLAIN.replace(labels=[Unit("conv", 3), "b", ("c", 1), 7])
CONSTRAINED = {
    "cardinality": [Cardinality(2)],
    "one group": [GroupBounds([0, 0, -1, -1], [1], [1])],
    "two groups": [GroupBounds([0, 0, 1, 1], [1, 0], [2, 1])],
    "all at most": [GroupBounds([0, 0, 0, 0], [0], [3])],
    "overlapping": [GroupBounds([0, 0, -1, -1], [1], [1]), GroupBounds([-1, 0, 0, -1], [0], [1])],
    "budget": [Budget([1.0, 2.0, 0.0, 4.5], 5.5)],
    "pair budget": [Budget([1.0, 2.0, 0.0, 4.0], 6.0, np.abs(MATRIX))],
    "mixed": [Cardinality(2), GroupBounds([0, 0, 1, 1], [1, 0], [1, 1]), Budget([1.0, 2.0, 3.0, 4.0], 6.0)],
}


def every(n: int) -> np.ndarray:
    return np.array(list(itertools.product([False, True], repeat=n)))


def stored(model, path) -> None:
    with model.to_file() as held:
        path.write_bytes(held.read())


def test_bqm_comes_back(tmp_path):
    write(PLAIN, tmp_path / "plain.bqm")
    assert read(tmp_path / "plain.bqm").hash == PLAIN.hash
    write(LABELLED, tmp_path / "labelled.bqm")
    assert read(tmp_path / "labelled.bqm").hash == LABELLED.hash


def test_bqm_is_what_dimod_reads(tmp_path):
    write(LABELLED, tmp_path / "out.bqm")
    with (tmp_path / "out.bqm").open("rb") as file:
        model = dimod.BinaryQuadraticModel.from_file(file)
    order = [("conv", 3), "b", ("c", 1), 7]
    np.testing.assert_allclose(model.energies((every(4).astype(np.int8), order)), LABELLED.value(every(4)))


def test_a_spin_bqm_becomes_bits(tmp_path):
    model = dimod.BinaryQuadraticModel({"a": 1.0, "b": -0.5}, {("a", "b"): 2.0}, 3.0, "SPIN")
    stored(model, tmp_path / "spins.bqm")
    problem = read(tmp_path / "spins.bqm")
    np.testing.assert_allclose(problem.value(every(2)), model.energies((2 * every(2).astype(np.int8) - 1, ["a", "b"])))


def test_bqm_refuses_constraints(tmp_path):
    with pytest.raises(UnsupportedProblem, match="no constraints, the problem has Cardinality"):
        write(PLAIN.replace(constraints=[Cardinality(1)]), tmp_path / "out.bqm")
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("suffix", [".cqm", ".lp"])
@pytest.mark.parametrize("name", CONSTRAINED)
def test_constraints_come_back_as_what_they_were(name, suffix, tmp_path):
    problem = PLAIN.replace(constraints=CONSTRAINED[name])
    path = tmp_path / f"out{suffix}"
    write(problem, path)
    back = read(path)
    np.testing.assert_allclose(back.value(every(4)), problem.value(every(4)))
    np.testing.assert_array_equal(back.is_feasible(every(4)), problem.is_feasible(every(4)))
    assert [type(c) for c in back.constraints] == [type(c) for c in problem.constraints]
    if suffix == ".cqm":
        assert back.labels is None


def test_a_cqm_keeps_the_labels(tmp_path):
    write(LABELLED.replace(constraints=[Cardinality(2)]), tmp_path / "out.cqm")
    assert read(tmp_path / "out.cqm").labels == LABELLED.labels


def test_an_lp_with_more_than_ten_variables_keeps_their_order(tmp_path):
    problem = BinaryQuadratic(np.arange(12.0)[::-1], constraints=[Cardinality(3)])
    write(problem, tmp_path / "out.lp")
    back = read(tmp_path / "out.lp")
    np.testing.assert_array_equal(back.linear, problem.linear)
    assert back.labels == tuple(f"x{i}" for i in range(12))


def lp(tmp_path, text: str):
    path = tmp_path / "model.lp"
    path.write_text(text)
    return path


def test_an_lp_that_maximises_says_so(tmp_path):
    problem = read(
        lp(
            tmp_path,
            "\\ a comment\nMaximize\n obj: 2 a + 3 b + [ 4 a*b ]/2\nSubject To\n c: a + b >= 1\nBinary\n a b\nEnd\n",
        )
    )
    assert problem.labels == ("a", "b")
    assert native_objective(problem, problem.value([True, True])) == 7
    assert problem.is_feasible(every(2)).tolist() == [False, True, True, True]


@pytest.mark.parametrize(
    ("row", "feasible"),
    [
        ("2 a + 2 b <= 3", [1, 1, 1, 0]),
        ("- a - b <= -1", [0, 1, 1, 1]),
        ("- a - b = -1", [0, 1, 1, 0]),
        ("- 2 a - 3 b >= -3", [1, 1, 1, 0]),
        ("a >= 1", [0, 0, 1, 1]),
        ("0.5 a + 0.5 b <= 0.75", [1, 1, 1, 0]),
        ("a + 2 b + [ 3 a * b ] <= 5", [1, 1, 1, 0]),
    ],
)
def test_a_row_means_what_it_says(row, feasible, tmp_path):
    text = f"Minimize\n obj: a + b\nSubject To\n row: {row}\nBinary\n a b\nEnd\n"
    assert read(lp(tmp_path, text)).is_feasible(every(2)).tolist() == [bool(f) for f in feasible]


@pytest.mark.parametrize(
    ("row", "complaint"),
    [
        ("a + 2 b = 2", "'row': an equality with unequal coefficients"),
        ("a - b <= 0", "'row': a negative coefficient"),
        ("a + 2 b >= 2", "'row': a lower limit"),
        ("[ a * b ] >= 1", "'row': a lower limit"),
    ],
)
def test_other_rows_are_refused_by_name(row, complaint, tmp_path):
    with pytest.raises(UnsupportedProblem, match=f"model.lp.*{complaint}"):
        read(lp(tmp_path, f"Minimize\n obj: a + b\nSubject To\n row: {row}\nBinary\n a b\nEnd\n"))


@pytest.mark.parametrize("row", ["a + b = 1.5", "a + b >= 3", "a + b <= -1", "2 a + 3 b <= -1"])
def test_rows_that_nothing_meets_are_refused(row, tmp_path):
    with pytest.raises(InvalidProblem, match="model.lp"):
        read(lp(tmp_path, f"Minimize\n obj: a + b\nSubject To\n row: {row}\nBinary\n a b\nEnd\n"))


@pytest.mark.parametrize(("section", "kind"), [("General\n z", "integer"), ("", "real")])
def test_wider_variables_are_refused_by_name(section, kind, tmp_path):
    text = f"Minimize\n obj: a + z\nSubject To\n c: a + z <= 3\nBounds\n z <= 3\nBinary\n a\n{section}\nEnd\n"
    with pytest.raises(UnsupportedProblem, match=f"'z' is {kind}"):
        read(lp(tmp_path, text))


def test_spins_in_a_cqm_become_bits(tmp_path):
    cqm = dimod.ConstrainedQuadraticModel()
    s, t = dimod.Spin("s"), dimod.Spin("t")
    cqm.set_objective(s + 2 * t - 3 * s * t)
    cqm.add_constraint(s + t == 0)
    stored(cqm, tmp_path / "spins.cqm")
    problem = read(tmp_path / "spins.cqm")
    assert problem.k == 1
    expected = [cqm.objective.energy({"s": 2 * int(a) - 1, "t": 2 * int(b) - 1}) for a, b in every(2)]
    np.testing.assert_allclose(problem.value(every(2)), expected)


def test_a_soft_constraint_is_refused(tmp_path):
    cqm = dimod.ConstrainedQuadraticModel()
    a, b = dimod.Binaries(["a", "b"])
    cqm.set_objective(a + b)
    cqm.add_constraint(a + b == 1, label="gently", weight=2.0)
    stored(cqm, tmp_path / "soft.cqm")
    with pytest.raises(UnsupportedProblem, match="'gently': it is soft"):
        read(tmp_path / "soft.cqm")


@pytest.mark.parametrize("suffix", [".bqm", ".cqm", ".lp"])
def test_broken_files_are_one_line(suffix, tmp_path):
    path = tmp_path / f"whole{suffix}"
    write(PLAIN, path)
    content = path.read_bytes()
    for broken in (b"", b"garbage", content[: len(content) // 3] if suffix != ".lp" else b"Minimize\n obj: x + ]"):
        path.write_bytes(broken)
        with pytest.raises(InvalidProblem) as raised:
            read(path)
        assert str(raised.value).startswith(str(path))


def test_nan_in_an_lp_is_refused(tmp_path):
    with pytest.raises(InvalidProblem, match="finite"):
        read(lp(tmp_path, "Minimize\n obj: a + nan b\nBinary\n a b\nEnd\n"))
