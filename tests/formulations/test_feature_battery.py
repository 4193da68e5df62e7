"""The battery passes over formulations of features and fails, in words, on each kind of broken one."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np
import pytest

from prunesolve import formulations
from prunesolve.formulations import FeatureFormulation, GeneralisedPruning
from prunesolve.formulations.generalised_pruning import Merging
from prunesolve.formulations.testing import check_formulation
from prunesolve.problems import Clustering, InvalidProblem, PartialTransport


@pytest.mark.parametrize("cls", [c for c in formulations.all() if issubclass(c, FeatureFormulation)])
def test_ours_keep_their_word(cls):
    check_formulation(cls())


@pytest.mark.parametrize("formulation", [GeneralisedPruning(spread=1.0), GeneralisedPruning(spread=1.5)], ids=repr)
def test_every_option_keeps_its_word(formulation):
    check_formulation(formulation)


@dataclass(frozen=True)
class Sound(GeneralisedPruning):
    """The broken ones below each spoil one thing of it."""

    name: ClassVar[str] = "sound"


@dataclass(frozen=True)
class Pairs(FeatureFormulation):
    """Half of the neurons of two layers in pairs, by the absolute difference of their first features."""

    split: bool = False
    name: ClassVar[str] = "pairs"
    layers: ClassVar[int] = 2

    def encode(self, *features: Any, **options: Any) -> PartialTransport:
        tables = [np.asarray(f, dtype=float) if not isinstance(f, str) else np.full((1, 1), np.nan) for f in features]
        sound = all(t.ndim == 2 and t.size and np.isfinite(t).all() for t in tables)
        if not sound or tables[0].shape[1] != tables[1].shape[1]:
            raise InvalidProblem("features: they do not fit")
        cost = np.abs(tables[0][:, :1] - tables[1][:, 0])
        n, m = cost.shape
        source, target = (
            (np.full(n, 1.0), np.full(m, 1.0)) if not self.split else (np.full(n, 1 / n), np.full(m, 1 / m))
        )
        meta = {"formulation": repr(self), "sense": "minimise"}
        return PartialTransport(cost, source, target, 0.5 if self.split else 2.0, meta=meta)

    def decode(self, problem: PartialTransport, solution: Any) -> Any:
        if solution is None:
            raise InvalidProblem("no solution")
        return problem.checked("solution", solution).toarray()

    def meaning(self, decoded: Any, *features: Any) -> float:
        pairs = zip(*np.nonzero(decoded), strict=True)
        return float(sum(decoded[i, j] * abs(features[0][i][0] - features[1][j][0]) for i, j in pairs))


@pytest.mark.parametrize("split", [False, True])
def test_two_layers_by_whole_pairs_or_by_shares(split):
    check_formulation(Pairs(split=split))


@dataclass(frozen=True)
class WrongMeaning(Sound):
    def meaning(self, decoded, features, weights=None):
        return 2.0 * super().meaning(decoded, features, weights)


@dataclass(frozen=True)
class WrongMerging(Sound):
    def decode(self, problem, solution):
        super().decode(problem, solution)
        return Merging.deletion([0, 1, 2], problem.n)


@dataclass(frozen=True)
class ChangesFeatures(Sound):
    def encode(self, features, keep=0.5, weights=None, *, labels=None):
        problem = super().encode(features, keep, weights, labels=labels)
        features += 1.0
        return problem


@dataclass(frozen=True)
class DiffersFromCallToCall(Sound):
    calls: list[int] = field(default_factory=list, compare=False)

    def encode(self, features, keep=0.5, weights=None, *, labels=None):
        self.calls.append(1)
        shifted = np.asarray(features) * len(self.calls) if not isinstance(features, str) else features
        return super().encode(shifted, keep, weights, labels=labels)


@dataclass(frozen=True)
class MetaForgotten(Sound):
    def encode(self, features, keep=0.5, weights=None, *, labels=None):
        return super().encode(features, keep, weights, labels=labels).replace(meta={})


@dataclass(frozen=True)
class TakesAnything(Sound):
    def encode(self, features, keep=0.5, weights=None, *, labels=None):
        return super().encode(np.nan_to_num(features), keep, weights, labels=labels)


@dataclass(frozen=True)
class DecodesNothing(Sound):
    def decode(self, problem, solution):
        return Merging.identity(problem.n) if solution is None else super().decode(problem, solution)


@dataclass(frozen=True)
class NothingToChoose(Sound):
    def encode(self, features, keep=0.5, weights=None, *, labels=None):
        return super().encode(features, 1.0, weights, labels=labels)


@dataclass(frozen=True)
class AnotherProblem(Sound):
    def encode(self, features, keep=0.5, weights=None, *, labels=None):
        problem = super().encode(features, keep, weights, labels=labels)
        return problem if not isinstance(problem, Clustering) else _Stranger(problem.hash)


@dataclass(frozen=True)
class _Stranger:
    hash: str


BROKEN = {
    WrongMeaning: "value differs from meaning",
    WrongMerging: "value differs from meaning",
    ChangesFeatures: "encode changed the features",
    DiffersFromCallToCall: "encode twice gave two problems",
    MetaForgotten: r"meta lacks \['formulation', 'sense'\]",
    TakesAnything: "features: NaN: expected InvalidProblem, got an answer",
    DecodesNothing: r"decode\(None\): expected InvalidProblem, got an answer",
    NothingToChoose: "has 1 solutions; there is nothing to choose",
    AnotherProblem: "expected a Clustering, a PartialTransport or a SubsetRegression, got _Stranger",
}


@pytest.mark.parametrize(("broken", "words"), BROKEN.items(), ids=lambda case: getattr(case, "__name__", ""))
def test_a_broken_formulation_fails_in_words(broken, words):
    with pytest.raises(AssertionError, match=words):
        check_formulation(broken())
