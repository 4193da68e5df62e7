r"""Small pruning instances of real networks that come with the package, and what is known of them.

Each is a problem as `formulations` encode it, biases rounded to single precision, labelled by the units of its
network. `benchmarks/real_instances.py` measured them and keeps their best known values and bounds.

Examples
--------
>>> name = "resnet20-layer1.0-reconstruction-keep50"
>>> problem = load(name)
>>> problem.n, problem.k, problem.labels[0]
(16, 8, Unit(layer='layer1.0.conv1', channel=0))
>>> about(name)["proved"]
True
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from functools import cache
from importlib import resources
from types import MappingProxyType
from typing import Any

import numpy as np

from ._arrays import Bits
from ._errors import unknown
from .binary_quadratic import BinaryQuadratic
from .units import Unit

_FOLDER = resources.files("prunesolve.problems") / "instances"


def names() -> list[str]:
    """The names of the instances, in the order of the index."""
    return list(_index())


def load(name: str) -> BinaryQuadratic:
    """The instance of that name.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    BinaryQuadratic
        Labels are `Unit`s; `meta` also carries `best_known`, `bound` and `proved`.

    Raises
    ------
    InvalidProblem
        If there is no such instance; the message suggests the nearest.
    """
    facts = about(name)
    with resources.as_file(_FOLDER / f"{name}.npz") as path:
        problem = BinaryQuadratic.load(path)
    known = {fact: facts[fact] for fact in ("best_known", "bound", "proved")}
    units = [Unit(*label) for label in problem.labels or ()]
    return problem.replace(labels=units, meta=dict(problem.meta) | known)


def about(name: str) -> Mapping[str, Any]:
    """What is known of an instance.

    Parameters
    ----------
    name : str
        One of `names()`.

    Returns
    -------
    mapping
        `n`; `k`, None without a cardinality; `kind`, couplings and constraints; `network`, `formulation`, `budget`,
        `provenance`; `best_known`, the least value found; `bound`, proved that none is less; `proved`, whether they
        agree within 1e-9 of the value; `by`, what found each; `hash` of the instance.

    Raises
    ------
    InvalidProblem
        If there is no such instance; the message suggests the nearest.
    """
    index = _index()
    if name not in index:
        raise unknown("library instance", name, index)
    return MappingProxyType({fact: value for fact, value in index[name].items() if fact != "solution"})


def best_solution(name: str) -> Bits:
    """(n,) bool, the selection whose value is `best_known`."""
    facts = about(name)
    solution = np.zeros(facts["n"], dtype=bool)
    solution[_index()[name]["solution"]] = True
    return solution


@cache
def _index() -> dict[str, Any]:
    found: dict[str, Any] = json.loads((_FOLDER / "index.json").read_text(encoding="utf-8"))
    return found
