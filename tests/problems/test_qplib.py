"""QPLIB text: hand-made files by the library's own formula, and as pyqplib reads what is written where it is there."""

import itertools

import numpy as np
import pytest

from prunesolve.problems import BinaryQuadratic, Budget, Cardinality, GroupBounds, InvalidProblem, UnsupportedProblem
from prunesolve.problems.readers import native_objective, read, write

# the example of the paper's appendix over bits, with a constant, a comment line and a two-sided second row
EXAMPLE = """! an example
MIPBAND # problem name
QBL # problem type
Minimize # objective sense

3 # variables
2 # general linear constraints
5 # nonzeros in lower triangle of Q^0
1 1 2.0 5 lines row & column index & value
2 1 -1.0 |
2 2 2.0 |
3 2 -1.0D0 |
3 3 2.0 |
-0.2 default value for entries in b_0
1 # non default entries in b_0
2 -0.4 index & value
0.5 value of q^0
4 # nonzeros in vectors b^i
1 1 1.0 constraint, index & value
1 2 1.0 |
2 1 1.0 |
2 3 1.0 |
1.79769313486232E+308 infinity
1.0 default value for entries in c_l
0 # non default entries in c_l
1.79769313486232E+308 default value for entries in c_u
1 # non default entries in c_u
2 1.0
1.0 default value for initial values for x
1 # non default entries in x
3 0.0
0.0 default value for initial values for y
0 # non default entries in y
0.0 default value for initial values for z
0 # non default entries in z
0 # non default names for variables
0 # non default names for constraints
"""
TRIANGLE = np.array([[2.0, 0, 0], [-1.0, 2.0, 0], [0, -1.0, 2.0]])


def every(n: int) -> np.ndarray:
    return np.array(list(itertools.product([False, True], repeat=n)))


def qplib(tmp_path, text: str):
    path = tmp_path / "model.qplib"
    path.write_text(text)
    return path


def test_the_example_by_the_formula_of_the_library(tmp_path):
    problem = read(qplib(tmp_path, EXAMPLE))
    x = every(3).astype(float)
    expected = 0.5 * ((x @ TRIANGLE) * x).sum(axis=1) + x @ [-0.2, -0.4, -0.2] + 0.5
    np.testing.assert_allclose(problem.value(every(3)), expected)
    np.testing.assert_array_equal(problem.is_feasible(every(3)), (x[:, 0] + x[:, 1] >= 1) & (x[:, 0] + x[:, 2] == 1))
    assert problem.meta["name"] == "model"
    assert problem.labels is None


def test_a_file_that_maximises_says_so(tmp_path):
    minimised, maximised = (
        read(qplib(tmp_path, EXAMPLE)),
        read(qplib(tmp_path, EXAMPLE.replace("Minimize", "MAXIMIZE"))),
    )
    assert maximised.meta["sense"] == "maximise"
    native = [native_objective(maximised, value) for value in maximised.value(every(3))]
    np.testing.assert_allclose(native, minimised.value(every(3)))


def test_integers_of_0_and_1_and_quadratic_rows(tmp_path):
    text = """m
LIQ
minimize
2
1
1.0
0
0.0
2
1 2 1 4.0
1 1 1 2.0
1
1 2 3.0
1e20
-1e20
0
1e20
1
1 {}
0.0
1
1 1.0
1.0
0
0.0
0
0.0
0
0.0
0
1
2 second
0
"""
    # x_1 + 2 x_1 x_2 + 3 x_2, with x_1 fixed at 1
    for limit, feasible in ((6, [0, 0, 1, 1]), (5, [0, 0, 1, 0])):
        problem = read(qplib(tmp_path, text.format(limit)))
        assert problem.is_feasible(every(2)).tolist() == [bool(f) for f in feasible]
        assert problem.labels == ("x1", "second")
        assert problem.value([True, True]) == 2


@pytest.mark.parametrize(
    ("kind", "problem"),
    [
        ("LBN", BinaryQuadratic([1.0, -1.0])),
        ("QBN", BinaryQuadratic([1.0, -1.0], [[0, 2], [2, 0]])),
        ("QBL", BinaryQuadratic([1.0, -1.0], [[0, 2], [2, 0]], constraints=[Cardinality(1)])),
        ("LBL", BinaryQuadratic([1.0, -1.0], constraints=[GroupBounds([0, 0], [1], [2])])),
        ("LBQ", BinaryQuadratic([1.0, -1.0], constraints=[Budget([1.0, 2.0], 3.5, [[0, 1], [1, 0]])])),
    ],
)
def test_the_type_says_what_is_in_it(kind, problem, tmp_path):
    write(problem, tmp_path / "x.qplib")
    assert (tmp_path / "x.qplib").read_text().splitlines()[1].split()[0] == kind
    assert read(tmp_path / "x.qplib").quadratic.tolist() == problem.couplings.dense().tolist()


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("QBL", "QCL", "all variables of a QCL are continuous"),
        ("1 1 1.0 constraint", "1 1 -1.0 constraint", "constraint 1: a negative coefficient"),
        ("1 1 1.0 constraint", "1 1 2.0 constraint", "constraint 1: a lower limit"),
    ],
)
def test_what_we_cannot_say_is_refused(old, new, complaint, tmp_path):
    assert old in EXAMPLE
    with pytest.raises(UnsupportedProblem, match=f"model.qplib: .*{complaint}"):
        read(qplib(tmp_path, EXAMPLE.replace(old, new)))


@pytest.mark.parametrize(
    ("types", "low", "high", "complaint"),
    [
        ("0\n0", "0.0", "1.0", "variable 1 is continuous from 0 to 1"),
        ("1\n1\n2 0", "0.0", "1.0", "variable 2 is continuous"),
        ("1\n0", "0.0", "2.0", "variable 1 is integer from 0 to 2"),
        ("1\n0", "-1e30", "1.0", "variable 1 is integer from -1e[+]30 to 1"),
    ],
)
def test_wider_variables_are_refused(types, low, high, complaint, tmp_path):
    text = f"m\nLGN\nminimize\n2\n1.0\n0\n0.0\n1e20\n{low}\n0\n{high}\n0\n{types}\n0.0\n0\n0.0\n0\n0\n0\n"
    with pytest.raises(UnsupportedProblem, match=complaint):
        read(qplib(tmp_path, text))


@pytest.mark.parametrize(
    ("old", "new", "complaint"),
    [
        ("QBL", "QBX", "line 3: expected a problem type"),
        ("Minimize", "Lessen", "line 4: expected minimize or maximize"),
        ("3 # variables", "x # variables", "line 6: expected a whole number"),
        ("5 # nonzeros", "500 # nonzeros", "line 8: expected 500 quadratic terms.*cut short"),
        ("2 1 -1.0", "4 1 -1.0", "line 10: expected a whole number from 1 to 3, got '4'"),
        ("2 1 -1.0", "2 1 nan", "line 10: expected a finite number, got 'nan'"),
        ("2 1 -1.0", "2 1 # gone", "line 10: expected an entry"),
        ("3 2 -1.0D0", "1 2 -1.0", "each pair once"),
        ("1 2 1.0 |", "1 1 1.0 |", "constraint 1: variable 1 is given twice"),
        ("2 1.0\n", "2 0.5\n", "constraint 2: expected sides in order"),
        ("1.0 default value for entries in c_l", "3.0 c_l", "."),
    ],
)
def test_broken_files_are_one_line(old, new, complaint, tmp_path):
    assert old in EXAMPLE
    with pytest.raises(InvalidProblem, match=f"model.qplib: .*{complaint}") as raised:
        read(qplib(tmp_path, EXAMPLE.replace(old, new, 1)))
    assert "\n" not in str(raised.value)


def test_a_file_cut_anywhere_is_refused(tmp_path):
    lines = EXAMPLE.splitlines(keepends=True)
    # the number of constraints' names, which nothing needs, may be missing
    for kept in range(1, len(lines) - 1):
        with pytest.raises((InvalidProblem, UnsupportedProblem), match="model.qplib"):
            read(qplib(tmp_path, "".join(lines[:kept])))


def test_pyqplib_reads_what_is_written(tmp_path):
    pyqplib = pytest.importorskip("pyqplib")
    rng = np.random.default_rng(1)
    upper = np.triu(rng.integers(0, 4, size=(5, 5)).astype(float), 1)
    problem = BinaryQuadratic(
        rng.normal(size=5),
        -upper - upper.T,
        offset=0.75,
        constraints=[GroupBounds([0, 0, 0, 1, 1], [1, 0], [2, 1]), Budget(np.arange(5.0), 7.0, upper + upper.T)],
    )
    write(problem, tmp_path / "x.qplib")
    found = pyqplib.read_problem(str(tmp_path / "x.qplib"))
    for x in every(5):
        assert found.obj_val(x.astype(float)) == pytest.approx(problem.value(x))
        spent = found.cons_val(x.astype(float))
        assert ((spent >= found.cons_lb) & (spent <= found.cons_ub)).all() == problem.is_feasible(x)
