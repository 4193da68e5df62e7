"""MPS files: enumerated against what was written, made by hand, and as HiGHS reads them where it is there."""

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from prunesolve.problems import (
    BinaryQuadratic,
    Budget,
    Cardinality,
    Clustering,
    GroupBounds,
    InvalidProblem,
    LowRank,
    UnsupportedProblem,
)
from prunesolve.problems.readers import native_objective, read, write

HALVES = st.integers(-20, 20).map(lambda k: k / 2)
COSTS = st.integers(0, 12).map(lambda k: k / 4)
MATRIX = np.array([[0, 1.5, 0, -2], [1.5, 0, 0.25, 0], [0, 0.25, 0, 1], [-2, 0, 1, 0]])


def every(n: int) -> np.ndarray:
    return np.array(list(itertools.product([False, True], repeat=n)), dtype=bool).reshape(2**n, n)


@st.composite
def symmetric(draw, n: int, entries=HALVES) -> np.ndarray:
    upper = np.zeros((n, n))
    upper[np.triu_indices(n, 1)] = draw(st.lists(entries, min_size=n * (n - 1) // 2, max_size=n * (n - 1) // 2))
    return upper + upper.T


@st.composite
def constraints_of(draw, n: int) -> list:
    """Any mix that one hidden selection meets."""
    kept = np.array(draw(st.lists(st.booleans(), min_size=n, max_size=n)))
    found = [Cardinality(int(kept.sum()))] if draw(st.booleans()) else []
    for _ in range(draw(st.integers(0, 2))):
        groups = draw(st.integers(1, 3))
        group = np.array(draw(st.lists(st.integers(-1, groups - 1), min_size=n, max_size=n)))
        count = np.array([int(kept[group == g].sum()) for g in range(groups)])
        below = draw(st.lists(st.integers(0, 2), min_size=groups, max_size=groups))
        above = draw(st.lists(st.integers(0, 2), min_size=groups, max_size=groups))
        found.append(GroupBounds(group, count - below, count + above))
    for _ in range(draw(st.integers(0, 2))):
        cost = np.array(draw(st.lists(COSTS, min_size=n, max_size=n)))
        pair = draw(st.one_of(st.none(), symmetric(n, COSTS)))
        spent = Budget(cost, 1e6, pair).spent(kept)
        found.append(Budget(cost, spent + draw(COSTS), pair))
    return found


@st.composite
def problems(draw) -> BinaryQuadratic:
    n = draw(st.integers(1, 6))
    linear = draw(st.lists(HALVES, min_size=n, max_size=n))
    return BinaryQuadratic(
        linear, draw(symmetric(n)), offset=draw(HALVES), constraints=draw(constraints_of(n)), meta={"name": "a  b"}
    )


def check_same(back: BinaryQuadratic, problem: BinaryQuadratic) -> None:
    selections = every(problem.n)
    np.testing.assert_allclose(back.value(selections), problem.value(selections), atol=1e-12)
    np.testing.assert_array_equal(back.is_feasible(selections), problem.is_feasible(selections))


@pytest.mark.parametrize("suffix", [".mps", ".qplib"])
@settings(max_examples=150, deadline=None)
@given(problem=problems())
def test_every_selection_is_worth_what_it_was(suffix, problem, tmp_path_factory):
    path = tmp_path_factory.mktemp("files") / f"x{suffix}"
    write(problem, path)
    back = read(path)
    check_same(back, problem)
    assert back.meta["sense"] == "minimise"
    assert back.meta["format"] == suffix[1:]


@pytest.mark.parametrize("suffix", [".mps", ".qplib"])
@pytest.mark.parametrize(
    "constraints",
    [
        [],
        [Cardinality(2)],
        [GroupBounds([0, 0, 1, 1], [1, 0], [2, 1])],
        [GroupBounds([0, 0, 0, 0], [1], [3])],
        [GroupBounds([0, 0, -1, -1], [1], [1]), GroupBounds([-1, 0, 0, -1], [0], [1])],
        [Budget([1.0, 2.0, 0.0, 4.0], 6.0, np.abs(MATRIX))],
        [Cardinality(2), GroupBounds([0, 0, 1, 1], [1, 0], [1, 1]), Budget([1.0, 2.0, 3.0, 4.0], 6.0)],
    ],
)
def test_constraints_come_back_as_what_they_were(suffix, constraints, tmp_path):
    problem = BinaryQuadratic([1.0, 0.0, -3.0, 0.125], MATRIX, offset=0.5, constraints=constraints)
    write(problem, tmp_path / f"x{suffix}")
    back = read(tmp_path / f"x{suffix}")
    check_same(back, problem)
    assert [type(c) for c in back.constraints] == [type(c) for c in constraints]


@pytest.mark.parametrize("suffix", [".mps", ".qplib"])
def test_biases_keep_every_digit_and_other_storages_are_written(suffix, tmp_path):
    rng = np.random.default_rng(0)
    F = rng.normal(size=(12, 2))
    for quadratic in (LowRank(F).dense(), LowRank(F), LowRank(F[:, :0])):
        problem = BinaryQuadratic(rng.normal(size=12), quadratic, offset=rng.normal())
        write(problem, tmp_path / f"x{suffix}")
        back = read(tmp_path / f"x{suffix}")
        np.testing.assert_array_equal(back.linear, problem.linear)
        # a row of F F' rounds by the order in which it is added up
        rounding = 1e-15 * isinstance(quadratic, LowRank)
        np.testing.assert_allclose(back.quadratic, problem.couplings.dense(), rtol=0, atol=rounding)
        assert back.offset == problem.offset


@pytest.mark.parametrize("suffix", [".mps", ".qplib"])
def test_nothing_is_left_of_what_cannot_be_written(suffix, tmp_path):
    with pytest.raises(UnsupportedProblem, match=r"only \.npz holds a Clustering"):
        write(Clustering([[0.0], [1.0]], n_clusters=1), tmp_path / f"x{suffix}")
    assert list(tmp_path.iterdir()) == []


# the example of CPLEX's file formats: minimise a + b + (a^2 + 4 a b + 7 b^2) / 2
CPLEX = """NAME          problem
* a comment
ROWS
 N  obj
 G  c1
COLUMNS
    a         obj                  1   c1                   1
    b         obj                  1   c1                   1
RHS
    rhs       c1                   1
BOUNDS
 BV BOUND     a
 BV BOUND     b
{}
ENDATA
"""
QMATRIX = "QMATRIX\n a a 1\n a b 2\n b a 2\n b b 7"


def mps(tmp_path, text: str):
    path = tmp_path / "model.mps"
    path.write_text(text)
    return path


@pytest.mark.parametrize(
    "section", [QMATRIX, "QUADOBJ\n a a 1\n a b 2\n b b 7", "QSECTION obj\n a a 1\n b a 2\n b b 7"]
)
def test_the_example_of_the_format(section, tmp_path):
    problem = read(mps(tmp_path, CPLEX.format(section)))
    assert problem.labels == ("a", "b")
    assert problem.value(every(2)).tolist() == [0, 1 + 3.5, 1 + 0.5, 2 + 6]
    assert problem.is_feasible(every(2)).tolist() == [False, True, True, True]


def test_a_quadratic_row_has_no_half(tmp_path):
    text = (
        CPLEX.format("QCMATRIX c1\n a a 1\n a b 2\n b a 2")
        .replace(" G  c1", " L  c1")
        .replace("c1                   1\nB", "c1 {}\nB")
    )
    for limit, feasible in ((6, [1, 1, 1, 0]), (7, [1, 1, 1, 1]), (1, [1, 1, 0, 0])):
        # a + b + a^2 + 4 a b
        assert read(mps(tmp_path, text.format(limit))).is_feasible(every(2)).tolist() == [bool(f) for f in feasible]


@pytest.mark.parametrize(
    ("kind", "span", "sides"), [("G", 1, (1, 2)), ("L", 1, (0, 1)), ("E", 1, (1, 2)), ("E", -1, (0, 1))]
)
def test_ranges_go_where_the_row_says(kind, span, sides, tmp_path):
    text = CPLEX.format("").replace(" G  c1", f" {kind}  c1").replace("BOUNDS", f"RANGES\n rng c1 {span}\nBOUNDS")
    kept = every(2).sum(axis=1)
    expected = (kept >= sides[0]) & (kept <= sides[1])
    np.testing.assert_array_equal(read(mps(tmp_path, text)).is_feasible(every(2)), expected)


def test_a_file_that_maximises_says_so(tmp_path):
    text = CPLEX.format(QMATRIX).replace("ROWS", "OBJSENSE\n    MAX\nROWS").replace("rhs       c1", "rhs obj 3 c1")
    problem = read(mps(tmp_path, text))
    assert problem.meta["sense"] == "maximise"
    assert [native_objective(problem, v) for v in problem.value(every(2))] == [-3, 1.5, -1.5, 5]


def test_bits_said_in_other_ways(tmp_path):
    text = """NAME
ROWS
 N cost
 N other
COLUMNS
 m1 'MARKER' 'INTORG'
 a cost -1 other 5
 b cost -1
 c cost -1
 m2 'MARKER' 'INTEND'
 d cost -1
BOUNDS
 UP bnd b 1
 FX bnd c 1
 BV d
ENDATA
"""
    problem = read(mps(tmp_path, text))
    np.testing.assert_array_equal(problem.is_feasible(every(4)), every(4)[:, 2])
    assert problem.value(np.ones(4, dtype=bool)) == -4


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        (" BV BOUND     b\n", "", "b is continuous from 0 to inf"),
        (" BV BOUND     b", " UI BOUND b 3", "b is integer from 0 to 3"),
        (" BV BOUND     b", " SC BOUND b 1", "line 13.*semi-continuous"),
        ("QMATRIX", "SOS1", "section SOS1"),
        (" b b 7", " b b 7\nQSECTION c1\n a b 1", "QSECTION c1"),
        ("c1                   1\nRHS", "c1 -1\nRHS", "'c1': a negative coefficient"),
        ("c1                   1\nRHS", "c1 2\nRHS", "'c1': a lower limit"),
    ],
)
def test_what_we_cannot_say_is_refused(old, new, complaint, tmp_path):
    text = CPLEX.format(QMATRIX)
    assert old in text
    with pytest.raises(UnsupportedProblem, match=f"model.mps.*{complaint}"):
        read(mps(tmp_path, text.replace(old, new)))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("ENDATA", "", "cut short"),
        (" N  obj\n", "", "line 6: row obj is not in ROWS"),
        (" N  obj", " X  obj", "line 4: ROWS: expected N, E, L or G"),
        (" G  c1", " G  c1\n G  c1", "c1 is named twice"),
        ("c1                   1\n    b", "c1 1 c1 2\n    b", "a is given twice in row c1"),
        ("c1                   1\n    b", "c1\n    b", "line 7: COLUMNS"),
        ("c1                   1\n    b", "c1 nan\n    b", "line 7: expected a finite number, got 'nan'"),
        ("c1                   1\n    b", "c1 1_0\n    b", "got '1_0'"),
        (" BV BOUND     b", " BV BOUND     z", "line 13: column BOUND is not in COLUMNS"),
        (" BV BOUND     b", " ZZ BOUND     b", "BOUNDS: expected BV"),
        (" b a 2", " b a 3", "symmetric"),
        (" b a 2\n", "", "symmetric"),
        (" b a 2\n", " b a 2\n b a 2\n", "every entry once"),
        ("QMATRIX", "QUADOBJ", "one of"),
        ("QMATRIX", "QCMATRIX", "QCMATRIX"),
        (" b b 7", " b b", "line 18: QMATRIX: expected two columns"),
        ("c1                   1\nB", "c1 3\nB", "no count of its 2 variables"),
        ("ROWS", "LINES", "expected a section of an MPS file"),
        ("ROWS", "OBJSENSE\n UP\nROWS", "expected MIN or MAX"),
    ],
)
def test_broken_files_are_one_line(old, new, complaint, tmp_path):
    text = CPLEX.format(QMATRIX)
    assert old in text
    with pytest.raises(InvalidProblem, match=complaint) as raised:
        read(mps(tmp_path, text.replace(old, new, 1)))
    assert str(raised.value).startswith(str(tmp_path))
    assert "\n" not in str(raised.value)


def test_highs_reads_what_is_written(tmp_path):
    highspy = pytest.importorskip("highspy")
    rng = np.random.default_rng(1)
    upper = np.triu(rng.integers(-3, 4, size=(5, 5)).astype(float), 1)
    problem = BinaryQuadratic(
        rng.normal(size=5),
        upper + upper.T,
        offset=0.75,
        constraints=[GroupBounds([0, 0, 0, 1, 1], [1, 0], [2, 1]), Budget([1.0, 2.0, 3.0, 4.0, 5.0], 7.0)],
    )
    write(problem, tmp_path / "x.mps")
    solver = highspy.Highs()
    solver.silent()
    assert solver.readModel(str(tmp_path / "x.mps")) == highspy.HighsStatus.kOk
    model = solver.getLp()
    hessian, rows = np.zeros((5, 5)), np.zeros((model.num_row_, 5))
    for matrix, stored in ((hessian, solver.getModel().hessian_), (rows, model.a_matrix_)):
        for column, (start, end) in enumerate(itertools.pairwise(stored.start_[:6])):
            matrix[stored.index_[start:end], column] = stored.value_[start:end]
    hessian = np.tril(hessian) + np.tril(hessian, -1).T
    x = every(5).astype(float)
    found = model.offset_ + x @ model.col_cost_ + 0.5 * ((x @ hessian) * x).sum(axis=1)
    np.testing.assert_allclose(found, problem.value(every(5)))
    held = ((x @ rows.T >= model.row_lower_) & (x @ rows.T <= model.row_upper_)).all(axis=1)
    np.testing.assert_array_equal(held, problem.is_feasible(every(5)))
