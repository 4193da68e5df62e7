"""Each quadratic form against its definition on raw data: contributions, gradients, filters."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import sparse

from prunesolve import formulations
from prunesolve.formulations import Fisher, HybridQubo, L1Qubo, Reconstruction
from prunesolve.formulations.testing import example_statistics
from prunesolve.problems import BinaryQuadratic, Blocks, Group, InvalidProblem, LowRank, Statistics

few = settings(max_examples=20, deadline=None)
seeds = st.integers(0, 10_000)


def groups(*sizes):
    return [Group(f"g{i}", s, [(f"g{i}", "out", np.arange(s)[:, None])]) for i, s in enumerate(sizes)]


def some_selection(rng, n):
    return rng.random(n) < rng.random()


@few
@given(seeds)
def test_reconstruction_is_the_relative_error_of_the_outputs(seed):
    """Two consumers with their own outputs; the first reads groups 0 and 1 (concat), the second group 2."""
    rng = np.random.default_rng(seed)
    sizes = rng.integers(1, 6, size=3)
    n = int(sizes.sum())
    first, second = rng.standard_normal((sizes[0] + sizes[1], 50)), rng.standard_normal((sizes[2], 40))
    gram = np.zeros((n, n))
    both = sizes[0] + sizes[1]
    gram[:both, :both] = first @ first.T / np.square(first.sum(axis=0)).sum()
    gram[both:, both:] = second @ second.T / np.square(second.sum(axis=0)).sum()
    starts = np.concatenate([[0], np.cumsum(sizes)])
    spans = [slice(a, b) for a, b in zip(starts, starts[1:], strict=False)]
    stats = Statistics(
        groups(*sizes),
        blocks={"reconstruction": [gram[s, s] for s in spans]},
        cross={"reconstruction": {(0, 1): gram[spans[0], spans[1]]}},
    )
    keep = some_selection(rng, n)
    lost = np.square(first[~keep[:both]].sum(axis=0)).sum() / np.square(first.sum(axis=0)).sum()
    lost += np.square(second[~keep[both:]].sum(axis=0)).sum() / np.square(second.sum(axis=0)).sum()
    problem = Reconstruction(minimum=0).encode(stats, keep=1.0)
    assert problem.value(keep) == pytest.approx(lost, rel=1e-9, abs=1e-9)
    assert Reconstruction().meaning(stats, keep) == pytest.approx(lost, rel=1e-9, abs=1e-9)


@few
@given(seeds)
def test_fisher_is_half_the_mean_square_derivative_of_what_goes(seed):
    rng = np.random.default_rng(seed)
    gradients = rng.standard_normal((30, 9))  # (samples, n)
    stats = Statistics(groups(4, 5), factors={"fisher": gradients.T / np.sqrt(30)})
    keep = some_selection(rng, 9)
    half_square = 0.5 * np.mean(gradients[:, ~keep].sum(axis=1) ** 2)
    assert Fisher(minimum=0).encode(stats, keep=1.0).value(keep) == pytest.approx(half_square, rel=1e-9, abs=1e-9)


@few
@given(
    seeds,
    st.sampled_from(["global", "layer"]),
    st.sampled_from(["taylor", "taylor_signed"]),
    st.sampled_from(["pruned", "kept"]),
    st.booleans(),
    st.booleans(),
)
def test_hybrid_term_by_term(seed, normalisation, first_order, pairs, scaled, squared):
    rng = np.random.default_rng(seed)
    gradients, maps = rng.standard_normal((25, 7)), rng.standard_normal((7, 12))
    first = np.abs(gradients).mean(axis=0) if first_order == "taylor" else gradients.mean(axis=0)
    second = np.square(gradients).mean(axis=0) / 2
    unit = maps / np.linalg.norm(maps, axis=1, keepdims=True)
    cosine = unit @ unit.T
    stats = Statistics(
        groups(3, 4),
        {first_order: first, "fisher": second},
        {"activation": [np.abs(cosine[:3, :3]), np.abs(cosine[3:, 3:])]},
    )
    keep = some_selection(rng, 7)

    def worth(i):
        peers = slice(0, 7) if normalisation == "global" else (slice(0, 3) if i < 3 else slice(3, 7))
        return 0.3 * abs(first[i]) / np.abs(first[peers]).mean() + 0.7 * second[i] / second[peers].mean()

    expected = -sum(worth(i) for i in np.flatnonzero(keep))
    paying = np.flatnonzero(keep if pairs == "kept" else ~keep)
    for i, j in itertools.combinations(paying, 2):
        if (i < 3) == (j < 3):
            similarity = cosine[i, j] ** 2 if squared else abs(cosine[i, j])
            expected += 0.4 * similarity * (np.sqrt(worth(i) * worth(j)) if scaled else 1.0)
    options = {"normalisation": normalisation, "first_order": first_order, "pairs": pairs}
    formulation = HybridQubo(alpha=0.3, beta=0.4, scaled=scaled, squared=squared, minimum=0, **options)
    assert formulation.encode(stats, keep=1.0).value(keep) == pytest.approx(expected, rel=1e-9, abs=1e-9)


@few
@given(seeds, st.booleans(), st.booleans())
def test_pairs_pruned_and_pairs_kept_differ_by_linear_terms(seed, scaled, squared):
    stats = example_statistics(seed)
    pruned, kept = (
        HybridQubo(pairs=p, scaled=scaled, squared=squared).encode(stats, keep=5) for p in ("pruned", "kept")
    )
    np.testing.assert_allclose(pruned.couplings.dense(), kept.couplings.dense())
    np.testing.assert_allclose(kept.linear - pruned.linear, kept.couplings.dense().sum(axis=1))


@pytest.mark.parametrize("seed", range(5))
@pytest.mark.parametrize("scaled", [True, False])
@pytest.mark.parametrize("pairs", ["pruned", "kept"])
def test_squared_cosines_carry_a_natural_diagonal(seed, scaled, pairs):
    stats = example_statistics(seed)
    problem = HybridQubo(scaled=scaled, pairs=pairs, beta=0.7).encode(stats, keep=0.5)
    form = problem.couplings.dense() / 2 + np.diag(problem.diagonal)
    assert np.linalg.eigvalsh(form)[0] > -1e-12
    worth = np.maximum(problem.diagonal, 0.0)
    # tight: a unit pays with itself what its own worth says
    assert np.allclose(worth / worth.sum(), _worth(stats, scaled) / _worth(stats, scaled).sum())


def _worth(stats, scaled):
    taylor, fisher = stats.saliency["taylor"], stats.saliency["fisher"]
    return 0.5 * taylor / taylor.mean() + 0.5 * fisher / fisher.mean() if scaled else np.ones(stats.n)


def test_a_similarity_that_is_no_gram_claims_no_diagonal():
    units = Group("fc", 3, [("fc", "out", [[0], [1], [2]])])
    apart = [[1.0, 1.0, 0.0], [1.0, 1.0, 1.0], [0.0, 1.0, 1.0]]
    stats = Statistics([units], {"taylor": np.ones(3), "fisher": np.ones(3)}, {"activation": [apart]})
    assert HybridQubo().encode(stats, keep=1).diagonal is None


def test_a_copy_is_dearer_to_lose_with_its_twin_than_with_a_stranger():
    """Four units of equal worth, 0 and 1 of the same maps: of every pair they are the last to go together."""
    cosine = np.eye(4)
    cosine[0, 1] = cosine[1, 0] = 1.0
    stats = Statistics(groups(4), {"taylor": np.ones(4), "fisher": np.ones(4)}, {"activation": [cosine]})
    problem = HybridQubo().encode(stats, keep=2)
    values = {gone: problem.value([i not in gone for i in range(4)]) for gone in itertools.combinations(range(4), 2)}
    assert values.pop((0, 1)) == pytest.approx(-2 + 0.5)
    assert set(values.values()) == {-2.0}


def test_l1_of_filters_written_out():
    filters = np.array([[1.0, 0.0], [0.0, -3.0], [2.0, 2.0], [5.0, 0.0]])
    cosine = np.array([[1.0, 0.0], [0.0, 1.0]]), np.array([[1.0, np.sqrt(0.5)], [np.sqrt(0.5), 1.0]])
    stats = Statistics(groups(2, 2), {"l1": np.abs(filters).sum(axis=1)}, {"weights": cosine})
    problem = L1Qubo(beta=0.5).encode(stats, keep=1.0)
    np.testing.assert_allclose(problem.linear, [-0.5, -1.5, -4 / 4.5, -5 / 4.5])
    assert problem.value([0, 0, 1, 1]) == pytest.approx(-2 + 0.5 * np.sqrt(0.5))


def test_a_group_of_zeros_is_worth_nothing_and_divides_by_nothing():
    stats = Statistics(groups(2, 2), {"l1": [0.0, 0.0, 1.0, 3.0]})
    np.testing.assert_array_equal(L1Qubo(beta=0).encode(stats, keep=2).linear, [0, 0, -0.5, -1.5])


def test_couplings_stay_in_their_natural_storage():
    chain, concat = example_statistics(), example_statistics(concat=True)
    assert isinstance(HybridQubo().encode(chain, keep=5).couplings, Blocks)
    assert isinstance(L1Qubo().encode(chain, keep=5).couplings, Blocks)
    assert isinstance(Reconstruction().encode(chain, keep=5).couplings, Blocks)
    assert isinstance(Fisher().encode(chain, keep=5).couplings, LowRank)
    assert isinstance(Reconstruction().encode(concat, keep=5).quadratic, np.ndarray)


def test_groups_that_meet_in_a_large_network_are_stored_sparsely():
    """One concat among 30 groups of 40; the values are those of the same statistics held densely."""
    rng = np.random.default_rng(0)
    raw = rng.standard_normal((30, 40, 6))
    stats = Statistics(
        groups(*[40] * 30),
        blocks={"reconstruction": [u @ u.T for u in raw]},
        cross={"reconstruction": {(3, 5): raw[3] @ raw[5].T}},
    )
    problem = Reconstruction().encode(stats, keep=0.5)
    assert sparse.issparse(problem.quadratic)
    formulation = Reconstruction()
    for _ in range(3):
        keep = rng.random(1200) < 0.5
        assert problem.value(keep) == pytest.approx(formulation.meaning(stats, keep), rel=1e-9)


def test_an_instance_file_alone_names_the_kept_units(tmp_path):
    stats = example_statistics()
    Reconstruction().encode(stats, keep=0.5).save(tmp_path / "instance.npz")
    read = BinaryQuadratic.load(tmp_path / "instance.npz")
    x = np.arange(stats.n) % 2 == 0
    kept: dict[str, list[int]] = {}
    for (layer, channel), bit in zip(read.labels, x, strict=True):
        if bit:
            kept.setdefault(layer, []).append(channel)
    assert kept == Reconstruction().decode(stats, x).kept
    assert read.meta["formulation"] == "Reconstruction(minimum=1)"
    assert read.meta["asked"]["keep"] == {"asked": 0.5, "units": 5, "of": 10}
    assert [g["size"] for g in read.meta["groups"]] == [4, 3, 3]


def test_no_solution_cannot_be_decoded():
    with pytest.raises(InvalidProblem, match="no solution to decode"):
        Fisher().decode(example_statistics(), None)


@pytest.mark.parametrize(
    ("make", "words"),
    [
        (lambda: HybridQubo(alpha=1.5), "alpha: expected a number from 0 to 1, got 1.5"),
        (lambda: HybridQubo(beta=-1.0), "beta: expected a number from 0"),
        (lambda: HybridQubo(beta=float("nan")), "beta: expected a number"),
        (lambda: HybridQubo(normalisation="layers"), "unknown normalisation 'layers': did you mean 'layer'"),
        (lambda: HybridQubo(similarity="activations"), "unknown similarity 'activations': did you mean 'activation'"),
        (lambda: HybridQubo(first_order="tailor"), "unknown first_order 'tailor': did you mean 'taylor'"),
        (lambda: HybridQubo(pairs="prune"), "unknown pairs 'prune': did you mean 'pruned'"),
        (lambda: HybridQubo(scaled="no"), "scaled: expected True or False, got 'no'"),
        (lambda: HybridQubo(squared=2), "squared: expected True or False, got 2"),
        (lambda: L1Qubo(beta="small"), "beta: expected a number from 0 to 1e.06, got 'small'"),
        (lambda: L1Qubo(minimum=-1), "minimum: expected a whole number of units >= 0, got -1"),
        (lambda: Fisher(minimum=True), "minimum: expected a whole number"),
        (lambda: formulations.get("recon"), "unknown formulation 'recon': Known|did you mean 'reconstruction'"),
        (lambda: formulations.get("hybrid-cubo"), "did you mean 'hybrid-qubo'"),
        (
            lambda: formulations.get("hybrid-qubo", betta=1),
            "unknown option of hybrid-qubo 'betta': did you mean 'beta'",
        ),
        (lambda: L1Qubo().encode("stats.npz", keep=1), "l1-qubo: expected Statistics, got str"),
        (lambda: L1Qubo().encode(Statistics([]), keep=1), "no unit"),
        (
            lambda: HybridQubo().encode(Statistics(groups(2)), keep=1),
            "needs saliency 'taylor', the statistics hold none",
        ),
    ],
)
def test_nonsense_is_refused_in_words(make, words):
    with pytest.raises(InvalidProblem, match=words):
        make()


def test_the_registry_names_and_makes_all():
    assert formulations.names()[:4] == ["l1-qubo", "hybrid-qubo", "fisher", "reconstruction"]
    for name, cls in zip(formulations.names(), formulations.all(), strict=False):
        made = formulations.get(name)
        assert type(made) is cls
        assert cls.name == name
        assert getattr(formulations, cls.__name__) is cls
    assert formulations.get("hybrid-qubo", beta=0.0) == HybridQubo(beta=0.0)
    with pytest.raises(AttributeError, match="Hybird"):
        formulations.Hybird  # noqa: B018
