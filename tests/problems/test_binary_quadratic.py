"""f(x), its storages and its translations, against double loops, enumeration and dimod."""

import itertools

import dimod
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from prunesolve.problems import (
    BinaryQuadratic,
    Blocks,
    Budget,
    Cardinality,
    Constraint,
    GroupBounds,
    InvalidProblem,
    LowRank,
    Unit,
    UnsupportedProblem,
)

KINDS = ("dense", "sparse", "blocks", "low-rank", "anti-low-rank", "none")


def symmetric(rng: np.random.Generator, n: int, density: float = 1.0) -> np.ndarray:
    upper = np.triu(rng.integers(-5, 6, size=(n, n)) * (rng.random((n, n)) < density), 1).astype(float)
    return upper + upper.T


def coupled(kind: str, n: int, rng: np.random.Generator) -> tuple[object, np.ndarray]:
    """A coupling in that storage, and the matrix it stands for, built independently."""
    if kind == "none":
        return None, np.zeros((n, n))
    if kind == "blocks":
        first = n // 2
        parts = [symmetric(rng, first), symmetric(rng, n - first)]
        matrix = np.zeros((n, n))
        matrix[:first, :first], matrix[first:, first:] = parts
        return Blocks(parts), matrix
    if kind.endswith("low-rank"):
        F = rng.integers(-3, 4, size=(n, 2)).astype(float)
        sign = -1 if kind.startswith("anti") else 1
        matrix = np.array([[sign * (F[i] @ F[j]) * (i != j) for j in range(n)] for i in range(n)]).reshape(n, n)
        return LowRank(F, sign), matrix
    matrix = symmetric(rng, n, 0.4 if kind == "sparse" else 1.0)
    return (sparse.coo_array(matrix) if kind == "sparse" else matrix), matrix


def every(n: int) -> np.ndarray:
    return np.array(list(itertools.product([False, True], repeat=n)), dtype=bool).reshape(-1, n)


def by_double_loop(linear: np.ndarray, matrix: np.ndarray, offset: float, x: np.ndarray) -> float:
    value = offset
    for i in range(len(linear)):
        value += linear[i] * x[i]
        for j in range(i + 1, len(linear)):
            value += matrix[i, j] * x[i] * x[j]
    return value


@pytest.mark.parametrize("kind", KINDS)
@given(n=st.integers(1, 6), seed=st.integers(0, 2**16))
@settings(max_examples=12)
def test_value_is_the_double_sum(kind, n, seed):
    rng = np.random.default_rng(seed)
    quadratic, matrix = coupled(kind, n, rng)
    linear, offset = rng.integers(-5, 6, size=n).astype(float), 1.5
    problem = BinaryQuadratic(linear, quadratic, offset=offset)
    X = every(n)
    expected = [by_double_loop(linear, matrix, offset, x) for x in X]
    np.testing.assert_allclose(problem.value(X), expected)
    assert problem.value(X[-1]) == pytest.approx(expected[-1])
    np.testing.assert_allclose(problem.couplings.dense(), matrix)


@pytest.mark.parametrize("kind", KINDS)
def test_couplings_answer_alike(kind):
    quadratic, matrix = coupled(kind, 7, np.random.default_rng(3))
    couplings = BinaryQuadratic(np.zeros(7), quadratic).couplings
    assert couplings.n == 7
    np.testing.assert_allclose([couplings.row(i) for i in range(7)], matrix)
    X = np.random.default_rng(4).random((3, 7))
    np.testing.assert_allclose(couplings.product(X), X @ matrix, atol=1e-12)
    np.testing.assert_allclose(couplings.product(X[0]), matrix @ X[0], atol=1e-12)
    rebuilt = np.zeros((7, 7))
    for i, j, biases in couplings.pairs():
        assert (i < j).all()
        np.add.at(rebuilt, (i, j), biases)
    np.testing.assert_allclose(rebuilt, np.triu(matrix))
    assert couplings.magnitude() >= np.abs(np.triu(matrix)).sum() - 1e-9


@pytest.mark.parametrize("kind", KINDS)
def test_a_field_is_what_a_flip_costs(kind):
    quadratic, _ = coupled(kind, 6, np.random.default_rng(5))
    problem = BinaryQuadratic(np.arange(6.0), quadratic)
    x = np.array([1, 0, 1, 1, 0, 0], dtype=bool)
    for i in range(6):
        on, off = x.copy(), x.copy()
        on[i], off[i] = True, False
        assert problem.fields(x)[i] == pytest.approx(problem.value(on) - problem.value(off))


@pytest.mark.parametrize("kind", KINDS)
def test_dimod_gives_the_same_energies(kind):
    quadratic, _ = coupled(kind, 5, np.random.default_rng(6))
    problem = BinaryQuadratic([1.0, 0.0, -2.0, 3.0, 0.0], quadratic, offset=-4.0)
    bqm = problem.to_bqm()
    assert list(bqm.variables) == list(range(5))
    X = every(5)
    np.testing.assert_allclose(bqm.energies((X.astype(np.int8), list(range(5)))), problem.value(X))
    back = BinaryQuadratic.from_bqm(bqm)
    np.testing.assert_allclose(back.value(X), problem.value(X))


def test_a_spin_model_becomes_bits():
    model = dimod.BinaryQuadraticModel({"a": 1.0, "b": -2.0, "c": 0.5}, {"ab": 3.0, "bc": -1.0}, 0.25, "SPIN")
    problem = BinaryQuadratic.from_bqm(model)
    assert problem.labels == ("a", "b", "c")
    X = every(3)
    np.testing.assert_allclose(problem.value(X), model.energies((2 * X.astype(np.int8) - 1, ["a", "b", "c"])))


def test_from_bqm_goes_sparse_where_that_is_smaller():
    n = 1500
    model = dimod.BinaryQuadraticModel(
        dict.fromkeys(range(n), 0.0), {(i, i + 1): 1.0 for i in range(n - 1)}, 0, "BINARY"
    )
    problem = BinaryQuadratic.from_bqm(model)
    assert sparse.issparse(problem.quadratic)
    assert problem.value(np.ones(n, dtype=bool)) == n - 1


CONSTRAINED = {
    "cardinality": [Cardinality(2)],
    "bounds": [GroupBounds([0, 0, 1, 1, -1], [1, 0], [1, 1])],
    "free group": [GroupBounds([0, 0, 1, 1, -1], [0, 1], [2, 2])],
    "budget": [Budget([1.0, 2.0, 0.0, 4.0, 3.0], 5.0)],
    "pair budget": [Budget([1.0, 2.0, 0.0, 4.0, 3.0], 5.0, np.eye(5, k=1) + np.eye(5, k=-1))],
    "empty budget": [Budget(np.zeros(5), 0.0)],
    "mixed": [Cardinality(3), GroupBounds([0, 0, 0, 1, 1], [1, 1], [2, 2]), Budget(np.arange(5.0), 8.0)],
}


@pytest.mark.parametrize("name", CONSTRAINED)
def test_to_cqm_keeps_objective_and_feasibility(name):
    problem = BinaryQuadratic(
        [1.0, -1.0, 2.0, -2.0, 0.0], symmetric(np.random.default_rng(8), 5), constraints=CONSTRAINED[name]
    )
    cqm = problem.to_cqm()
    for x in every(5):
        sample = dict(enumerate(x.astype(int).tolist()))
        assert cqm.check_feasible(sample) == problem.is_feasible(x)
        assert cqm.objective.energy(sample) == pytest.approx(problem.value(x))


@pytest.mark.parametrize(
    "constraints",
    [
        [Cardinality(2)],
        [GroupBounds([0, 0, 1, 1, -1], [1, 2], [1, 2])],
        [Cardinality(3), GroupBounds([0] * 3 + [1] * 2, [2, 1], [2, 1])],
    ],
)
def test_to_qubo_penalises_exactly_what_is_broken(constraints):
    problem = BinaryQuadratic(
        np.arange(5.0), symmetric(np.random.default_rng(9), 5), offset=2.0, constraints=constraints
    )
    free = problem.to_qubo(penalty=10.0)
    assert free.constraints == ()
    for x in every(5):
        squares = sum(
            float((x.sum() - c.k) ** 2) if isinstance(c, Cardinality) else float(((c.counts(x) - c.low) ** 2).sum())
            for c in constraints
        )
        assert free.value(x) == pytest.approx(problem.value(x) + 10.0 * squares)


@pytest.mark.parametrize("constraint", [Budget([1.0, 1.0], 1.0), GroupBounds([0, 0], [0], [1])])
def test_to_qubo_refuses_inequalities_in_words(constraint):
    with pytest.raises(UnsupportedProblem, match="inequality"):
        BinaryQuadratic([1.0, 2.0], constraints=[constraint]).to_qubo(1.0)


ASYMMETRIC = [[0.0, 1.0], [2.0, 0.0]]
LOOPED = [[1.0, 2.0], [2.0, 0.0]]
BROKEN = [[0.0, np.nan], [np.nan, 0.0]]


@pytest.mark.parametrize(
    "store", [np.array, sparse.csr_array, lambda m: Blocks([m])], ids=["dense", "sparse", "blocks"]
)
@pytest.mark.parametrize(
    ("matrix", "complaint"), [(ASYMMETRIC, "not symmetric"), (LOOPED, "diagonal"), (BROKEN, "finite")]
)
def test_matrices_that_are_no_couplings_are_refused(store, matrix, complaint):
    with pytest.raises(InvalidProblem, match=complaint):
        BinaryQuadratic([0.0, 0.0], store(np.array(matrix)))


@pytest.mark.parametrize(
    ("arguments", "complaint"),
    [
        ({"linear": [0.0, np.inf]}, "finite"),
        ({"linear": [[0.0]]}, "shape"),
        ({"linear": ["a"]}, "numbers"),
        ({"linear": [0.0, 0.0], "quadratic": np.zeros((3, 3))}, r"\(2, 2\)"),
        ({"linear": [0.0, 0.0], "quadratic": np.zeros((2, 3))}, "square"),
        ({"linear": [0.0, 0.0], "quadratic": sparse.csr_array((2, 3))}, "shape"),
        ({"linear": [0.0], "offset": np.nan}, "offset"),
        ({"linear": [0.0], "offset": "many"}, "offset"),
        ({"linear": [0.0], "diagonal": [0.0, 1.0]}, "diagonal"),
        ({"linear": [0.0, 0.0], "labels": ["a"]}, "labels"),
        ({"linear": [0.0, 0.0], "labels": ["a", "a"]}, "distinct"),
        ({"linear": [0.0], "labels": [{}]}, "labels"),
        ({"linear": [0.0], "constraints": ["k = 1"]}, "constraints"),
        ({"linear": [1e308, 1e308]}, "float64 range"),
        ({"linear": [0.0], "quadratic": LowRank([[1e200]])}, "float64 range"),
    ],
)
def test_bad_arguments_are_one_line_that_names_them(arguments, complaint):
    with pytest.raises(InvalidProblem, match=complaint) as raised:
        BinaryQuadratic(**arguments)
    assert "\n" not in str(raised.value)


def test_low_rank_takes_no_other_sign():
    with pytest.raises(InvalidProblem, match="sign"):
        LowRank([[1.0]], sign=2)


@pytest.mark.parametrize("x", [[0.5, 0.0], [np.nan, 0.0], [1, 0, 1], 1, [[[1, 0]]]])
def test_only_bits_of_the_right_length_have_a_value(x):
    with pytest.raises(InvalidProblem, match="x: expected"):
        BinaryQuadratic([1.0, 2.0]).value(x)


def test_rounding_in_a_product_is_symmetry_enough():
    F = np.random.default_rng(0).normal(size=(40, 7))
    matrix = (F * 1.1) @ F.T
    matrix[0, 1] *= 1 + 1e-14
    np.fill_diagonal(matrix, 0.0)
    kept = BinaryQuadratic(np.zeros(40), matrix).quadratic
    assert np.array_equal(kept, kept.T)
    thinned = BinaryQuadratic(np.zeros(40), sparse.csr_array(matrix)).quadratic
    assert not (thinned != thinned.T).nnz


def test_arrays_are_copies_and_read_only():
    linear, matrix = np.zeros(2), np.zeros((2, 2))
    problem = BinaryQuadratic(linear, matrix, diagonal=np.zeros(2))
    linear[0] = matrix[0, 1] = matrix[1, 0] = 7.0
    assert problem.value([True, True]) == 0.0
    for array in (problem.linear, problem.quadratic, problem.diagonal):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1.0


def test_replace_changes_one_field_and_keeps_the_matrix():
    problem = BinaryQuadratic([1.0, 2.0], [[0.0, 3.0], [3.0, 0.0]], labels=["a", "b"], meta={"name": "two"})
    other = problem.replace(constraints=[Cardinality(1)], offset=1.0)
    assert other.k == 1
    assert problem.k is None
    assert other.value([True, True]) == problem.value([True, True]) + 1.0
    assert other.quadratic is problem.quadratic
    assert other.labels == ("a", "b")
    assert other.meta == {"name": "two"}
    with pytest.raises(InvalidProblem, match="did you mean 'linear'"):
        problem.replace(liner=[1.0, 2.0])
    with pytest.raises(InvalidProblem, match="expected"):
        problem.replace(linear=[1.0])


def test_no_variables_are_a_problem_too():
    for quadratic in (None, np.zeros((0, 0)), Blocks([]), sparse.csr_array((0, 0)), LowRank(np.zeros((0, 2)))):
        problem = BinaryQuadratic([], quadratic, offset=2.0, constraints=[Cardinality(0), Budget([], 0.0)])
        assert problem.value([]) == 2.0
        assert problem.is_feasible([])


@pytest.mark.parametrize(
    ("constraints", "complaint"),
    [
        ([Cardinality(5)], "largest that can be kept is 4"),
        ([Cardinality(1), Cardinality(2)], "contradict"),
        ([Cardinality(1), GroupBounds([0, 0, 1, 1], [1, 1], [2, 2])], "smallest k that can be met is 2"),
        ([Cardinality(4), GroupBounds([0, 0, 1, -1], [0, 0], [1, 1])], "largest k that can be met is 3"),
        ([Cardinality(2), Budget([1.0, 2.0, 3.0, 4.0], 2.5)], "smallest that can is 3$"),
        ([Budget([1.5, 2.0, 3.0, 4.0], 1.0), GroupBounds([0, 0, 1, -1], [1, 1], [2, 1])], "smallest that can is 4.5$"),
        (
            [Cardinality(3), GroupBounds([0, 0, 0, 0], [0], [4]), Budget([1000001.0] * 4, 3e6)],
            "smallest that can is 3000003$",
        ),
        ([GroupBounds([0, 0], [0], [1])], "for each of n = 4"),
        ([Budget([1.0], 1.0)], "for each of n = 4"),
    ],
)
def test_what_no_selection_meets_is_refused_with_the_nearest(constraints, complaint):
    with pytest.raises(InvalidProblem, match=complaint):
        BinaryQuadratic(np.zeros(4), constraints=constraints)


@given(seed=st.integers(0, 2**16))
@settings(max_examples=60)
def test_one_group_bounds_with_cardinality_and_budget_is_refused_exactly_when_empty(seed):
    rng = np.random.default_rng(seed)
    n, groups = 6, 2
    group = rng.integers(-1, groups, size=n)
    sizes = np.bincount(group[group >= 0], minlength=groups)
    low = rng.integers(0, sizes + 1)
    bounds = GroupBounds(group, low, rng.integers(low, sizes + 1))
    budget = Budget(rng.integers(0, 6, size=n), float(rng.integers(0, 12)))
    constraints = [Cardinality(int(rng.integers(0, n + 1))), bounds, budget]
    X = every(n)
    possible = np.logical_and.reduce([np.array([c.violation(x) == 0 for x in X]) for c in constraints]).any()
    if possible:
        assert BinaryQuadratic(np.zeros(n), constraints=constraints).is_feasible(X).any()
    else:
        with pytest.raises(InvalidProblem):
            BinaryQuadratic(np.zeros(n), constraints=constraints)


def test_bounds_without_a_group_do_not_hinder_a_budget():
    problem = BinaryQuadratic(np.zeros(2), constraints=[GroupBounds([-1, -1], [], []), Budget([1.0, 1.0], 1.0)])
    assert problem.is_feasible([True, False])


def test_violation_adds_up_and_feasibility_asks_each():
    problem = BinaryQuadratic(np.zeros(3), constraints=[Cardinality(1), Budget([1.0, 2.0, 4.0], 3.0)])
    X = every(3)
    expected = [abs(int(x.sum()) - 1) + max(0.0, float(x @ [1.0, 2.0, 4.0]) - 3.0) for x in X]
    np.testing.assert_allclose(problem.violation(X), expected)
    np.testing.assert_array_equal(problem.is_feasible(X), np.array(expected) == 0)
    assert problem.violation(X[-1]) == 6.0


def test_a_constraint_of_another_kind_is_refused():
    class Prime(Constraint):
        def check(self, n):
            pass

        def _excess(self, x):
            return 0.0

    with pytest.raises(InvalidProblem, match="got Prime"):
        BinaryQuadratic([0.0], constraints=[Prime()])


def test_labels_are_units_strings_or_tuples():
    labels = [Unit("conv", 3), "b", ("c", np.int64(4)), ["d", [1, 2]]]
    problem = BinaryQuadratic(np.zeros(4), labels=labels)
    assert problem.labels == (("conv", 3), "b", ("c", 4), ("d", (1, 2)))
    assert problem.labels[0].layer == "conv"


def test_the_hash_is_the_content():
    matrix = np.array([[0.0, 2.0], [2.0, 0.0]])
    first = BinaryQuadratic([1.0, 0.0], matrix, constraints=[Cardinality(1)])
    assert first.hash == BinaryQuadratic([1.0, -0.0], matrix.copy(), constraints=[Cardinality(1)]).hash
    assert first.hash == first.replace(meta={"name": "other"}).hash
    others = [
        first.replace(linear=[1.0, 1e-300]),
        first.replace(offset=1.0),
        first.replace(constraints=[Cardinality(2)]),
        first.replace(labels=["a", "b"]),
        first.replace(diagonal=[0.0, 0.0]),
        first.replace(quadratic=2 * matrix),
        first.replace(quadratic=sparse.csr_array(matrix)),
    ]
    assert len({first.hash, *(other.hash for other in others)}) == len(others) + 1


def test_a_hash_does_not_depend_on_the_index_width():
    narrow = sparse.csr_array(symmetric(np.random.default_rng(1), 6))
    wide = narrow.copy()
    wide.indices, wide.indptr = wide.indices.astype(np.int64), wide.indptr.astype(np.int64)
    assert BinaryQuadratic(np.zeros(6), narrow).hash == BinaryQuadratic(np.zeros(6), wide).hash
