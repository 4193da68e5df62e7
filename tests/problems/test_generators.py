"""Random instances: the same from the same seed, and with the properties they promise."""

import numpy as np
import pytest

from prunesolve.problems import Blocks, Budget, InvalidProblem, LowRank, Unit
from prunesolve.problems.generators import COUPLINGS, max_diversity, palubeckis, pruning, quadratic_knapsack, qubo

MAKERS = {
    **{kind: lambda seed, kind=kind: pruning(40, layers=3, coupling=kind, seed=seed) for kind in COUPLINGS},
    "qubo": lambda seed: qubo(20, 0.5, seed),
    "palubeckis": lambda seed: palubeckis(20, 50, seed),
    "knapsack": lambda seed: quadratic_knapsack(20, 0.5, seed),
    "diversity": lambda seed: max_diversity(20, 5, seed),
}


@pytest.mark.parametrize("name", MAKERS)
def test_a_seed_is_an_instance(name):
    np.random.seed(0)  # noqa: NPY002  (the global generator is what must be left alone)
    before = np.random.get_state()[1].copy()  # noqa: NPY002
    first, again, other = MAKERS[name](1), MAKERS[name](1), MAKERS[name](2)
    assert first.hash == again.hash != other.hash
    np.testing.assert_array_equal(np.random.get_state()[1], before)  # noqa: NPY002


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_pruning_instances_are_like_pruning(coupling):
    n, layers, rank = 60, 4, 5
    problem = pruning(n, 0.36, layers=layers, rank=rank, coupling=coupling, seed=3)
    assert problem.k == 22
    assert problem.labels[0] == Unit("layer0", 0)
    assert problem.labels[-1] == Unit("layer3", 14)
    assert (problem.linear < 0).all()
    J = problem.couplings.dense()
    layer = np.array([int(unit.layer.removeprefix("layer")) for unit in problem.labels])
    if coupling in ("dense", "low-rank"):
        gram = J / 2 + np.diag(problem.diagonal)
        eigenvalues = np.linalg.eigvalsh(gram)
        assert eigenvalues[0] > -1e-9
        assert (eigenvalues > 1e-9).sum() == rank
    else:
        assert not J[layer[:, None] != layer].any()
        assert J.any()


def test_pruning_blocks_keep_the_claim_and_low_rank_is_the_dense_one():
    blocks = pruning(30, layers=3, rank=4, coupling="blocks", seed=5)
    assert isinstance(blocks.couplings, Blocks)
    assert blocks.couplings.sizes.tolist() == [10, 10, 10]
    assert np.linalg.eigvalsh(blocks.couplings.dense() / 2 + np.diag(blocks.diagonal))[0] > -1e-9
    thin, dense = (pruning(30, layers=3, rank=4, coupling=c, seed=5) for c in ("low-rank", "dense"))
    assert isinstance(thin.couplings, LowRank)
    np.testing.assert_allclose(thin.couplings.dense(), dense.quadratic)
    np.testing.assert_array_equal(thin.linear, dense.linear)
    X = np.random.default_rng(0).random((5, 30)) < 0.5
    np.testing.assert_allclose(thin.value(X), dense.value(X))


def test_units_of_one_cluster_are_alike():
    """Two units that share a cluster are more similar, on average, than two that do not."""
    J = pruning(200, clusters=4, rank=16, seed=1).quadratic
    alike = J[np.quantile(J, 0.8) < J].mean()
    assert alike > 5 * abs(np.median(J))
    thinned = pruning(200, clusters=4, rank=16, coupling="sparse", seed=1).couplings.dense()
    kept = thinned != 0
    np.testing.assert_allclose(thinned[kept], J[kept])
    assert J[kept].mean() > 4 * abs(J[~kept].mean())


def test_sparse_pruning_claims_no_more_than_it_holds():
    problem = pruning(50, clusters=5, coupling="sparse", seed=2)
    assert np.linalg.eigvalsh(problem.couplings.dense() / 2 + np.diag(problem.diagonal))[0] > -1e-9


def test_classics():
    free = qubo(30, 0.3, seed=1)
    assert free.constraints == ()
    assert 0.15 < np.mean(free.quadratic[np.triu_indices(30, 1)] != 0) < 0.45
    assert set(np.unique(free.quadratic % 2)) == {0.0}
    knapsack = quadratic_knapsack(30, 0.5, seed=1)
    (budget,) = knapsack.of_kind(Budget)
    assert 50 <= budget.limit <= budget.cost.sum()
    assert knapsack.quadratic.max() <= 0
    D = -max_diversity(25, 6, seed=4).quadratic
    assert all(D[i, j] <= D[i, k] + D[k, j] + 1e-9 for i in range(25) for j in range(25) for k in range(25))


def number_by_number(n, density, seed):
    """Palubeckis' stream read as the paper tells it, one number after the other."""
    coefficients = np.zeros((n, n))

    def random():
        nonlocal seed
        seed = 16807 * seed % (2**31 - 1)
        return seed / 2**31

    for i in range(n):
        coefficients[i, i] = np.floor(201 * random()) - 100
        for j in range(i + 1, n):
            if 100 * random() <= density:
                coefficients[i, j] = np.floor(201 * random()) - 100
    return coefficients


@pytest.mark.parametrize("density", [0, 10, 50, 80, 100])
@pytest.mark.parametrize("n", [1, 2, 3, 60])
def test_palubeckis_stream_is_read_in_order(n, density):
    problem, q = palubeckis(n, density, 31000), number_by_number(n, density, 31000)
    x = np.random.default_rng(0).random((20, n)) < 0.5
    expected = [q.diagonal()[row].sum() + 2 * np.triu(q, 1)[np.ix_(row, row)].sum() for row in x]
    np.testing.assert_array_equal(-problem.value(x), expected)


@pytest.mark.slow
def test_palubeckis_p3000_1_reaches_the_published_value():
    """A wrong stream has another optimum; 3931583 is the best known since Palubeckis (2004)."""
    from prunesolve import solvers

    best = -3931583
    problem = palubeckis(3000, 50, 31000)
    result = solvers.get("swap-tabu").solve(
        problem, evaluation_limit=3_000_000, callback=lambda seen: seen.objective <= best
    )
    assert result.objective == best


@pytest.mark.parametrize(
    ("build", "complaint"),
    [
        (lambda: pruning(0), "1 <= layers <= n"),
        (lambda: pruning(4, layers=5), "layers"),
        (lambda: pruning(4, keep=1.5), "keep"),
        (lambda: pruning(4, coupling="sparce"), "did you mean 'sparse'"),
        (lambda: qubo(0), "n >= 1"),
        (lambda: quadratic_knapsack(5, 2.0), "density"),
        (lambda: palubeckis(5, 101, 1), "density from 0 to 100"),
        (lambda: palubeckis(5, 50, 0), "seed from 1"),
        (lambda: max_diversity(5, 6), "largest that can be kept is 5"),
    ],
)
def test_numbers_that_make_no_sense_are_refused(build, complaint):
    with pytest.raises(InvalidProblem, match=complaint):
        build()
