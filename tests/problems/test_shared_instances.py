"""Public instances, exported to the text formats from their raw arrays and read back."""

from pathlib import Path

import numpy as np
import pytest
from scipy.spatial.distance import squareform

from prunesolve.problems.readers import native_objective, read

pytestmark = pytest.mark.shared


def selections(n: int) -> np.ndarray:
    return np.vstack([np.ones((1, n), bool), np.random.default_rng(0).random((20, n)) < 0.5])


@pytest.mark.parametrize("name", ["bqp50-1", "bqp50-10", "bqp250-3"])
def test_a_beasley_file_is_the_raw_form(name: str, shared: Path, tmp_path: Path):
    raw = np.load(shared / "instances" / f"ubqp_{name}.npz")
    n, i, j, q = int(raw["n"]), raw["i"], raw["j"], raw["q"]
    # the arrays are minimised and count a pair once; the file maximises and counts it twice
    entries = np.where(i == j, -q, -q / 2)
    lines = "\n".join(f"{a + 1} {b + 1} {v:g}" for a, b, v in zip(i, j, entries, strict=True))
    path = tmp_path / f"{name}.txt"
    path.write_text(f"1\n{n} {len(i)}\n{lines}\n")
    problem = read(path)
    for x in selections(n):
        expected = float((q * x[i] * x[j]).sum())
        assert problem.value(x) == expected
        assert native_objective(problem, problem.value(x)) == -expected


@pytest.mark.parametrize("name", ["SOM-b_11_n300_m90", "GKD-c_1_n500_m50"])
def test_an_mdplib_file_is_the_raw_form(name: str, shared: Path, tmp_path: Path):
    raw = np.load(shared / "instances" / f"mdp_{name}.npz")
    n, m, d = int(raw["n"]), int(raw["m"]), raw["d"].astype(float)
    i, j = np.triu_indices(n, 1)
    rows = (f"{a} {b} {v!r}" for a, b, v in zip(i.tolist(), j.tolist(), d.tolist(), strict=True))
    path = tmp_path / f"{name}.txt"
    path.write_text(f"{n} {m}\n" + "\n".join(rows))
    problem = read(path)
    assert problem.k == m
    distance = squareform(d)
    for x in selections(n)[:5]:
        assert native_objective(problem, problem.value(x)) == pytest.approx(distance[np.ix_(x, x)].sum() / 2)


def test_a_qkp_file_is_the_raw_form(shared: Path, tmp_path: Path):
    raw = np.load(shared / "instances" / "qkp_billionnet_soutif.npz")
    name = next(key[:-2] for key in raw.files if key.endswith("100_25_1_P"))
    weight, capacity = raw[f"{name}_w"], int(raw[f"{name}_c"])
    n = len(weight)
    upper = np.zeros((n, n))
    upper[np.triu_indices(n)] = raw[f"{name}_P"]
    rows = [np.diag(upper), *(upper[a, a + 1 :] for a in range(n - 1))]
    body = "\n".join(" ".join(f"{v:g}" for v in row) for row in rows)
    path = tmp_path / "instance.txt"
    path.write_text(f"{name}\n{n}\n{body}\n\n0\n{capacity}\n{' '.join(map(str, weight))}\n\nComments\n")
    problem = read(path)
    for x in selections(n):
        assert native_objective(problem, problem.value(x)) == x @ upper @ x
        assert problem.is_feasible(x) == (weight[x].sum() <= capacity)
