"""Text formats against the arrays they were written from, and every way a file can be wrong."""

import subprocess
import sys

import dimod
import numpy as np
import pytest
from dimod.serialization import coo as dimod_coo
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from prunesolve.problems import (
    BinaryQuadratic,
    Budget,
    Cardinality,
    InvalidProblem,
    UnsupportedProblem,
)
from prunesolve.problems.readers import FORMATS, instances_in, native_objective, read, split_index, write

BEASLEY = "2\n3 4\n1 1 5\n1 2 -3\n2 3 4\n3 3 -7\n2 2\n1 2 6\n2 2 1\n"
MDPLIB = "4 2\n0 1 1.5\n0 2 2\n0 3 3\n1 2 4\n1 3 5\n2 3 6.25\n"
QKP = "jeu_3\n3\n10 20 30\n1 2\n3\n\n0\n25\n10 12 14\n\nComments\nDensity : 100 %\n"
COO = "0 0 -1\n0 1 2.5\n2 1 -4\n2 2 1e-3\n"


@pytest.fixture
def file(tmp_path):
    def written(text: str | bytes, name: str = "instance.txt"):
        path = tmp_path / name
        path.write_bytes(text if isinstance(text, bytes) else text.encode())
        return path

    return written


def every(n: int) -> np.ndarray:
    return (np.arange(2**n)[:, None] >> np.arange(n) & 1).astype(bool)


def test_beasley_maximises_and_counts_pairs_twice(file):
    path = file(BEASLEY)
    assert instances_in(path) == 2
    problem = read(path, index=1)
    Q = np.array([[5, -3, 0], [-3, 0, 4], [0, 4, -7]])
    for x in every(3):
        assert native_objective(problem, problem.value(x)) == x @ Q @ x
    assert problem.meta["sense"] == "maximise"
    assert problem.meta["name"] == "instance:1"
    second = read(path, index=2)
    assert [native_objective(second, second.value(x)) for x in every(2)] == [0, 0, 1, 13]


def test_a_file_with_several_instances_asks_which(file):
    path = file(BEASLEY)
    with pytest.raises(InvalidProblem, match="holds 2 instances"):
        read(path)
    for index in (0, 3):
        with pytest.raises(InvalidProblem, match="from 1"):
            read(path, index=index)


def test_mdplib_keeps_m_far_apart(file):
    problem = read(file(MDPLIB))
    assert problem.k == 2
    D = np.array([[0, 1.5, 2, 3], [1.5, 0, 4, 5], [2, 4, 0, 6.25], [3, 5, 6.25, 0]])
    for x in every(4):
        assert native_objective(problem, problem.value(x)) == x @ D @ x / 2


@pytest.mark.parametrize("layout", ["from one", "matrix"])
def test_mdplib_in_its_other_layouts(layout, file):
    plain = read(file(MDPLIB))
    if layout == "matrix":
        rows = "\n".join(" ".join(str(d) for d in row) for row in -plain.quadratic)
        other = f"4 2\n{rows}\n"
    else:
        lines = [line.split() for line in MDPLIB.splitlines()[1:]]
        other = "4 2\n" + "\n".join(f"{int(i) + 1} {int(j) + 1} {d}" for i, j, d in lines)
    assert read(file(other, "other.txt")).hash == plain.hash


def test_qkp_is_a_budget(file):
    problem = read(file(QKP))
    assert problem.meta["name"] == "jeu_3"
    (budget,) = problem.constraints
    assert isinstance(budget, Budget)
    assert budget.limit == 25
    assert budget.cost.tolist() == [10, 12, 14]
    profit = {(0, 1): 1, (0, 2): 2, (1, 2): 3}
    for x in every(3):
        expected = x @ [10, 20, 30] + sum(p for (i, j), p in profit.items() if x[i] and x[j])
        assert native_objective(problem, problem.value(x)) == expected


def test_coo_is_minimised(file):
    problem = read(file(COO))
    for x in every(3).astype(int):
        assert problem.value(x) == pytest.approx(-x[0] + 2.5 * x[0] * x[1] - 4.0 * x[1] * x[2] + 1e-3 * x[2])
        assert native_objective(problem, problem.value(x)) == problem.value(x)


@pytest.mark.parametrize("vartype", ["BINARY", "SPIN"])
@given(seed=st.integers(0, 2**16))
@settings(max_examples=15)
def test_coo_as_dimod_writes_it(vartype, seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    n = 5
    linear = {i: float(rng.integers(-4, 5)) or 1.0 for i in range(n)}
    pairs = {(i, j): rng.integers(-8, 9) / 4 for i in range(n) for j in range(i + 1, n) if rng.random() < 0.6}
    model = dimod.BinaryQuadraticModel(linear, pairs, 0.0, vartype)
    path = tmp_path_factory.mktemp("coo") / "model.txt"
    path.write_text(dimod_coo.dumps(model, vartype_header=True))
    problem = read(path)
    X = every(n).astype(np.int8)
    np.testing.assert_allclose(
        problem.value(X), model.energies((X if vartype == "BINARY" else 2 * X - 1, list(range(n))))
    )


def test_repeated_coo_entries_add_up(file):
    problem = read(file("# a comment\n0 1 2\n1 0 3\n\n0 0 1\n0 0 1\n"))
    assert problem.value([1, 1]) == 7


def test_large_sparse_coo_stays_sparse(file):
    problem = read(file("".join(f"{i} {i + 1} 1\n" for i in range(3000))))
    assert sparse.issparse(problem.quadratic)
    assert problem.value(np.ones(3001, dtype=bool)) == 3000


@pytest.mark.parametrize("text", [BEASLEY, MDPLIB, QKP, COO], ids=["beasley", "mdplib", "qkp", "coo"])
@pytest.mark.parametrize("change", ["windows", "indented", "trailing", "leading"])
def test_blanks_do_not_matter(text, change, file):
    changed = {
        "windows": text.replace("\n", "\r\n"),
        "indented": "".join(f"  \t{line}  \n" for line in text.splitlines()),
        "trailing": text.rstrip() + "\n\n  \n",
        "leading": "\n\n" + text,
    }[change]
    assert read(file(changed, "changed.txt"), index=1).hash == read(file(text), index=1).hash


@pytest.mark.parametrize(
    ("format", "text"),
    [("beasley", BEASLEY), ("mdplib", MDPLIB), ("qkp", QKP), ("coo", COO)],
)
def test_a_named_format_reads_what_auto_finds(format, text, file):
    path = file(text)
    assert read(path, format=format, index=1).hash == read(path, index=1).hash
    assert read(path, index=1).meta["format"] == format


@pytest.mark.parametrize(
    ("text", "format", "complaint"),
    [
        # truncated
        ("1\n3 4\n1 1 5\n1 2 -3\n2 3 4\n", "auto", r"4 entries i j q \(12 numbers\), got 9 .* line 5"),
        ("2\n3 1\n1 1 5\n", "beasley", r"variables of instance 2|holds 2"),
        ("4 2\n0 1 1.5\n0 2 2\n", "auto", "takes 18 numbers .* got 6"),
        ("name\n3\n10 20 30\n1 2\n", "auto", r"upper triangle .* \(3 numbers\), got 2"),
        ("name\n3\n10 20 30\n1 2\n3\n0\n25\n10 12\n", "auto", "3 weights"),
        ("name\n3\n10 20 30\n1 2\n3\n0\n25\n10 12\nComments\n", "auto", "3 weights"),
        ("name", "auto", "after the name"),
        # too much
        ("1\n2 1\n1 2 6\n9\n", "auto", "line 4: expected the end"),
        ("name\n1\n5\n0\n3\n2 9\n", "auto", "line 6: expected the end"),
        # counts
        ("0\n", "auto", "number of instances"),
        ("1.5\n2 1\n1 2 6\n", "auto", "number of instances, whole"),
        ("1\n-2 1\n1 2 6\n", "auto", "line 2: expected the number of variables"),
        ("1\n2 9\n1 2 6\n", "auto", "line 2: expected the number of entries .* from 0 to 3, got 9"),
        (
            "3 4\n0 1 1\n0 2 1\n1 2 1\n",
            "mdplib",
            "line 1: expected m, .* whole and from 0 to 3, got 4",
        ),
        # indices
        ("1\n2 1\n1 3 6\n", "auto", "line 3: expected two indices from 1 to 2, got 1 and 3"),
        ("1\n2 1\n0 1 6\n", "auto", "line 3: expected two indices from 1 to 2"),
        ("1\n2 2\n1 2 6\n2 1 6\n", "beasley", "line 4: entry 2 1 is given twice"),
        ("3 2\n0 1 1\n0 3 1\n1 2 1\n", "mdplib", "line 3: expected two indices from 0 to 2, got 0 and 3"),
        ("3 2\n0 1 1\n1 0 1\n1 2 1\n", "mdplib", "line 2: expected every pair once, got 0 1 again"),
        ("3 2\n0 1 1\n1 1 1\n1 2 1\n", "mdplib", "got 1 1 again"),
        ("2 1\n0 1\n2 0\n", "mdplib", "line 2: expected a symmetric matrix"),
        ("2 1\n3 1\n1 0\n", "mdplib", "symmetric matrix with zero diagonal, got 3"),
        ("0 1 2\n0.5 1 2\n", "coo", "line 2: expected two indices"),
        ("0 1 2\n-1 1 2\n", "coo", "line 2: expected two indices"),
        ("0 99999999999 2\n", "coo", "two indices from 0 to 9999999"),
        # numbers
        ("1\n2 1\n1 2 nan\n", "auto", "line 3: expected a finite number, got 'nan'"),
        ("4 2\n0 1 1e999\n", "auto", "line 2: expected a finite number, got '1e999'"),
        ("name\n2\n1 inf\n", "auto", "line 3: expected a finite number, got 'inf'"),
        ("name\n2\nnan 1\n", "auto", "line 3: expected a finite number, got 'nan'"),
        ("name\n2\n1 x\n", "auto", "line 3: expected a finite number, got 'x'"),
        ("0 1 1_0\n", "coo", "got '1_0'"),
        ("0 1 1-2\n", "coo", "got '1-2'"),
        ("0 1\n2 1 2 3\n", "coo", "line 1: expected 'i j value', got 2 numbers"),
        ("# vartype=SPIN\n", "coo", "got none"),
        ("# vartype=INTEGER\n0 0 1\n", "auto", "BINARY or SPIN, got INTEGER"),
        ("# vartype=SPIN\n# vartype=BINARY\n0 0 1\n", "auto", "got BINARY and SPIN"),
        # the knapsack
        ("name\n1\n5\n0\n-3\n2\n", "auto", "limit"),
        ("name\n1\n5\n7\n3\n2\n", "auto", "kind of constraint"),
        ("name\n1\n5\n0\n3\n-2\n", "auto", "cost"),
        # no format at all
        ("", "auto", "empty"),
        (" \n\n", "beasley", "empty"),
        ("1 2 3 4 5\n", "auto", "none of beasley, mdplib, qkp, coo"),
        ("PK\x03\x04\0\0", "auto", "binary"),
        ("5 7\n1 2 1\n1 3 1\n", "auto", "read as mdplib; if it is not, name the format"),
    ],
)
def test_a_wrong_file_is_one_line_that_says_where(text, format, complaint, file):
    path = file(text)
    with pytest.raises(InvalidProblem, match=complaint) as raised:
        read(path, format=format)
    assert str(path) in str(raised.value)
    assert "\n" not in str(raised.value)


def test_an_equality_knapsack_is_refused_by_name(file):
    with pytest.raises(UnsupportedProblem, match="equality"):
        read(file("name\n1\n5\n1\n3\n2\n"))


def test_doubt_names_the_candidates(file):
    # one instance of two variables and one entry, or two coordinate lines
    path = file("1 2 1\n1 2 5\n")
    with pytest.raises(InvalidProblem, match="in doubt between beasley and coo"):
        read(path)
    assert read(path, format="beasley").n == 2
    assert read(path, format="coo").n == 3


def test_random_bytes_are_refused(file):
    rng = np.random.default_rng(0)
    for length in (1, 10, 1000):
        for _ in range(20):
            garbage = rng.integers(128, 256, size=length).astype(np.uint8).tobytes()
            for format in FORMATS:
                name = f"garbage.{format}" if format in ("npz", "bqm", "cqm", "lp") else "garbage"
                with pytest.raises(InvalidProblem):
                    read(file(garbage, name), format=format)


@pytest.mark.parametrize("name", ["none.txt", "none.npz", "none.bqm", "none.lp"])
def test_a_missing_file_is_one_clear_line(name, tmp_path):
    with pytest.raises(InvalidProblem, match=f"{name}: no such file"):
        read(tmp_path / name)
    (tmp_path / name).mkdir()
    with pytest.raises(InvalidProblem, match="no such file"):
        read(tmp_path / name)


def test_an_unknown_format_suggests_the_nearest(file):
    with pytest.raises(InvalidProblem, match="did you mean 'beasley'"):
        read(file(COO), format="beasly")


def test_other_files_hold_one_instance(file, tmp_path):
    for path in (file(MDPLIB, "m"), file(QKP, "q"), file(COO, "c")):
        assert instances_in(path) == 1
        with pytest.raises(InvalidProblem, match="holds 1 instance, got index 2"):
            read(path, index=2)
    BinaryQuadratic([1.0]).save(tmp_path / "own.npz")
    assert instances_in(tmp_path / "own.npz") == 1
    with pytest.raises(InvalidProblem, match="holds 1 instance"):
        read(tmp_path / "own.npz", index=2)


def test_split_index(file):
    assert split_index("bqp50.txt:10") == ("bqp50.txt", 10)
    assert split_index("a:b/c.npz") == ("a:b/c.npz", None)
    assert split_index(":3") == (":3", None)
    odd = str(file(COO, "odd:2"))
    assert split_index(odd) == (odd, None)
    with pytest.raises(InvalidProblem, match="from 1"):
        split_index("bqp50.txt:0")


def test_own_files_are_read_by_their_suffix(tmp_path):
    problem = BinaryQuadratic([1.0, -2.0], meta={"sense": "maximise", "name": "own"})
    write(problem, tmp_path / "own.npz")
    back = read(tmp_path / "own.npz")
    assert back.hash == problem.hash
    assert native_objective(back, -2.0) == 2.0
    assert back.meta == {"name": "own", "format": "npz", "sense": "maximise"}


@given(seed=st.integers(0, 2**16))
@settings(max_examples=20)
def test_coo_text_comes_back_bit_by_bit(seed, tmp_path_factory):
    rng = np.random.default_rng(seed)
    n = int(rng.integers(1, 7))
    matrix = np.triu(rng.normal(size=(n, n)) * 10.0 ** rng.integers(-12, 12, size=(n, n)), 1)
    linear = rng.normal(size=n) * (rng.random(n) < 0.5)
    problem = BinaryQuadratic(linear, matrix + matrix.T)
    path = tmp_path_factory.mktemp("coo") / "out.coo"
    write(problem, path)
    assert read(path).hash == problem.hash
    with path.open() as text:
        model = dimod_coo.load(text)
    # dimod leaves out the variables that no line names
    for i in range(n):
        model.add_variable(i)
    X = every(n)
    np.testing.assert_allclose(model.energies((X.astype(np.int8), list(range(n)))), problem.value(X))


@pytest.mark.parametrize(
    ("problem", "complaint"),
    [
        (BinaryQuadratic([1.0], constraints=[Cardinality(1)]), "no constraints, the problem has Cardinality"),
        (BinaryQuadratic([1.0], offset=2.0), "no offset"),
    ],
)
def test_coo_refuses_what_it_cannot_hold(problem, complaint, tmp_path):
    with pytest.raises(UnsupportedProblem, match=complaint):
        write(problem, tmp_path / "out.coo")
    assert list(tmp_path.iterdir()) == []


def test_an_unknown_suffix_writes_nothing(tmp_path):
    with pytest.raises(InvalidProblem, match="did you mean '.npz'"):
        write(BinaryQuadratic([1.0]), tmp_path / "out.npy")
    assert list(tmp_path.iterdir()) == []


def test_text_readers_stay_light(file):
    paths = [str(file(text, f"i{i}")) for i, text in enumerate((BEASLEY, MDPLIB, QKP, COO))]
    code = (
        "import sys\n"
        "from prunesolve.problems.readers import read\n"
        f"for path in {paths!r}: read(path, index=1)\n"
        "print([name for name in ('scipy.sparse', 'dimod', 'rich', 'torch', 'numba') if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"
