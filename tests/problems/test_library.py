"""The shipped instances: what the index says of each is recomputed, and everything maps back to layers."""

from __future__ import annotations

import subprocess
import sys
import zipfile
from itertools import combinations, product
from pathlib import Path

import numpy as np
import pytest

import prunesolve as ps
from prunesolve.problems import Blocks, Budget, Cardinality, GroupBounds, LowRank, library

NAMES = library.names()
PROVABLE = 20  # units up to which every selection is valued


def test_a_dozen_varied_small_instances():
    problems = [library.load(name) for name in NAMES]
    assert len(NAMES) >= 12
    assert min(p.n for p in problems) <= PROVABLE
    assert max(p.n for p in problems) <= 336
    kinds = {type(p.couplings).__name__ for p in problems}
    assert kinds >= {"Blocks", "Dense", "LowRank"}
    assert len({p.meta["network"] for p in problems}) >= 6
    assert {p.meta["formulation"].partition("(")[0] for p in problems} >= {"Reconstruction", "Fisher", "HybridQubo"}
    assert any(b.pair is not None for p in problems for b in p.of_kind(Budget))
    assert any(bounds.low.max() > 1 for p in problems for bounds in p.of_kind(GroupBounds))


def test_the_folder_holds_what_the_index_names_and_stays_small():
    folder = Path(library.__file__).parent / "instances"
    files = {file.name: file.stat().st_size for file in folder.iterdir()}
    assert set(files) == {"index.json", *(f"{name}.npz" for name in NAMES)}
    assert max(files.values()) < 150_000
    assert sum(files.values()) < 1_200_000


@pytest.mark.parametrize("name", NAMES)
def test_the_index_tells_the_truth(name):
    problem, facts, solution = library.load(name), library.about(name), library.best_solution(name)
    assert (problem.hash, problem.n, problem.k) == (facts["hash"], facts["n"], facts["k"])
    assert problem.value(solution) == pytest.approx(facts["best_known"], rel=1e-9, abs=1e-15)
    assert problem.is_feasible(solution)
    assert facts["bound"] <= facts["best_known"]
    closed = facts["best_known"] - facts["bound"] <= 1e-9 * abs(facts["best_known"])
    assert facts["proved"] == closed
    assert {"best_known", "bound", "proved"} <= set(problem.meta)
    for fact in ("network", "formulation", "budget", "provenance"):
        assert problem.meta[fact] == facts[fact]
    assert facts["kind"].startswith(type(problem.couplings).__name__)


@pytest.mark.parametrize("name", NAMES)
def test_no_single_move_betters_the_best_known(name):
    problem, x = library.load(name), library.best_solution(name)
    fields, least = problem.fields(x), -1e-10 * abs(problem.value(x))
    flips = np.where(x, -fields, fields)
    kept, gone = np.flatnonzero(x), np.flatnonzero(~x)
    swaps = flips[kept][:, None] + flips[gone] - problem.couplings.dense()[np.ix_(kept, gone)]
    better = [[i] for i in np.flatnonzero(flips < least)]
    better += [[kept[i], gone[j]] for i, j in np.argwhere(swaps < least)]
    for move in better:
        moved = x.copy()
        moved[move] ^= True
        assert not problem.is_feasible(moved)


@pytest.mark.parametrize("name", [name for name in NAMES if library.about(name)["n"] <= PROVABLE])
def test_small_instances_by_enumeration(name):
    problem = library.load(name)
    chosen = np.array([np.isin(np.arange(problem.n), kept) for kept in combinations(range(problem.n), problem.k)])
    best = problem.value(chosen[problem.is_feasible(chosen)]).min()
    assert library.about(name)["best_known"] == pytest.approx(best, rel=1e-12)
    assert library.about(name)["proved"]


def test_three_blocks_by_enumerating_each():
    name = "resnet20-stage1-reconstruction-keep64"
    problem, everything = library.load(name), np.array(list(product((0.0, 1.0), repeat=16)))
    # best[k]: least value of k units in the blocks so far; at least one of each block stays
    best = np.concatenate([[problem.offset], np.full(48, np.inf)])
    for b, block in enumerate(problem.couplings.blocks):
        linear = problem.linear[16 * b : 16 * b + 16]
        values = everything @ linear + 0.5 * np.einsum("mi,ij,mj->m", everything, block, everything, optimize=True)
        counts = everything.sum(axis=1)
        front = np.array([values[counts == k].min() for k in range(17)])
        joined = np.full(49, np.inf)
        for k in range(1, 17):
            joined[k:] = np.minimum(joined[k:], best[: 49 - k] + front[k])
        best = joined
    assert library.about(name)["best_known"] == pytest.approx(best[problem.k], rel=1e-9)
    assert library.about(name)["proved"]


@pytest.mark.parametrize("name", NAMES)
def test_the_claimed_diagonal_holds(name):
    problem = library.load(name)
    if problem.diagonal is None:
        assert problem.meta["formulation"].startswith(("HybridQubo", "L1Qubo"))
        return
    matrix = problem.couplings.dense() / 2 + np.diag(problem.diagonal)
    assert np.linalg.eigvalsh(matrix)[0] >= -1e-14 * np.linalg.norm(matrix, 2)


@pytest.mark.parametrize("name", NAMES)
def test_units_map_into_layers(name):
    problem = library.load(name)
    assert all(isinstance(unit, ps.Unit) for unit in problem.labels)
    sizes = {group["layer"]: group["size"] for group in problem.meta["groups"]}
    assert sum(sizes.values()) == problem.n
    for unit in problem.labels:
        assert 0 <= unit.channel < sizes[unit.layer]


def networks():
    from prunesolve.demo_networks import load_network

    return {"digits": load_network("classify"), "denoiser": load_network("denoise")}


@pytest.mark.parametrize("name", [name for name in NAMES if name.startswith(("digits", "denoiser"))])
def test_the_best_selection_applies_to_the_network_it_came_from(name, tmp_path):
    from prunesolve.applying import apply_result
    from prunesolve.result_files import told_of

    problem = library.load(name)
    result = ps.solve(problem, solver="greedy", start=library.best_solution(name))
    told = told_of(f"library:{name}", problem, result)
    spent = apply_result(networks()[problem.meta["network"]], told, tmp_path / "out")
    assert spent["params"][0] < spent["params"][1]
    if problem.of_kind(Budget):
        assert spent["macs"][0] <= 0.5 * spent["macs"][1]


def test_couplings_keep_their_structure():
    assert isinstance(library.load("resnet20-reconstruction-keep50").couplings, Blocks)
    assert isinstance(library.load("resnet20-fisher-keep50").couplings, LowRank)
    assert library.load("resnet20-reconstruction-keep50").of_kind(Cardinality)[0].k == 168


def test_an_unknown_name_suggests_the_nearest():
    for asked in (library.load, library.about, library.best_solution):
        with pytest.raises(ps.InvalidProblem, match=r"did you mean 'resnet20-reconstruction-keep50'\?"):
            asked("resnet20-reconstruction-keep5")


def test_what_is_told_cannot_be_changed():
    with pytest.raises(TypeError):
        library.about(NAMES[0])["n"] = 3


def test_the_door_leads_here_and_loads_numpy_alone():
    assert ps.library is library
    heavy = ("torch", "scipy", "numba", "dimod", "prunesolve.solvers", "prunesolve.formulations")
    code = (
        "import sys, prunesolve as ps\nps.library.load('mlp-fc3-fisher-keep30')\n"
        f"print([name for name in {heavy!r} if name in sys.modules])"
    )
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout == "[]\n"


def test_the_files_are_compressed_and_hold_no_pickle():
    for file in (Path(library.__file__).parent / "instances").glob("*.npz"):
        with zipfile.ZipFile(file) as archive:
            assert all(part.compress_type == zipfile.ZIP_DEFLATED for part in archive.infolist())
        with np.load(file, allow_pickle=False) as arrays:
            assert all(arrays[name].dtype != object for name in arrays.files)
