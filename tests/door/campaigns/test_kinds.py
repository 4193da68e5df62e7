"""Campaigns on every kind of problem that a file may hold."""

import json

import numpy as np

from prunesolve.campaigns import Records
from prunesolve.problems import (
    BinaryQuadratic,
    Cardinality,
    Clustering,
    Keep,
    LevelChoice,
    MultiObjective,
    PartialTransport,
    SparseRegression,
    SubsetRegression,
)


def saved(folder):
    """One small instance of each kind."""
    rng = np.random.default_rng(0)
    points = rng.normal(size=(8, 3))
    gram, cross = points.T @ points + np.eye(3), rng.normal(size=(3, 2))
    error, cost = [[3.0, 1.0], [2.0, 0.5]], [[1.0, 2.0], [1.0, 3.0]]
    parts = [BinaryQuadratic(rng.normal(size=6)), BinaryQuadratic(np.arange(1.0, 7.0))]
    made = {
        "levels": LevelChoice(error, cost, 4.0),
        "transport": PartialTransport(rng.random((3, 4)), np.ones(3), np.ones(4), 2.0),
        "clusters": Clustering(points, n_clusters=3),
        "subset": SubsetRegression(gram, cross, [0, 1, 2], [Cardinality(2)]),
        "sparse": SparseRegression(gram, cross, Keep(4)),
        "front": MultiObjective.over(parts, ["loss", "params"]),
    }
    for name, problem in made.items():
        problem.save(folder / f"{name}.npz")
    return made


def test_every_kind_is_solved_checked_and_exported(place):
    made = saved(place.folder)
    for file in place.folder.glob("div*.npz"):
        file.unlink()
    place.campaign('"auto"', head="evaluation_limit = 2000")
    done = place.batch("--workers", 2)
    assert done.returncode == 0, done.stderr
    rows = {row["instance"].removesuffix(".npz"): row for row in Records.load(place.out).rows}
    assert set(rows) == set(made)
    exported = place.run("export", "out", "--to", "results", "--out", "results")
    assert exported.returncode == 0, exported.stderr
    for name, problem in made.items():
        assert rows[name]["feasible"], name
        assert rows[name]["instance_hash"] == problem.hash
    for file in (place.folder / "results").iterdir():
        name = json.loads(file.read_text())["instance"]
        assert place.run("check", name, file).stdout.startswith("holds"), name
    assert place.run("report", "out").returncode == 0
