"""`load` reads back everything we write and refuses the rest in words."""

from __future__ import annotations

import numpy as np
import pytest

import prunesolve as ps
from prunesolve.formulations.testing import example_statistics
from prunesolve.problems import readers


def instance():
    return ps.formulations.HybridQubo().encode(example_statistics(), keep=0.5, params=0.7)


def test_a_problem(tmp_path):
    instance().save(tmp_path / "instance.npz")
    read = ps.load(tmp_path / "instance.npz")
    assert isinstance(read, ps.BinaryQuadratic)
    assert read.hash == instance().hash
    assert read.meta == instance().meta


def test_statistics_with_everything_in_them(tmp_path):
    stats = example_statistics(concat=True)
    stats.save(tmp_path / "stats.npz")
    read = ps.load(str(tmp_path / "stats.npz"))
    assert isinstance(read, ps.Statistics)
    encode = ps.formulations.Reconstruction().encode
    assert encode(read, keep=0.5, macs=0.6).hash == encode(stats, keep=0.5, macs=0.6).hash


def test_a_result(tmp_path):
    result = ps.solve(instance(), "greedy")
    result.save(tmp_path / "result.json")
    read = ps.load(tmp_path / "result.json")
    assert isinstance(read, ps.Result)
    np.testing.assert_array_equal(read.solution, result.solution)
    assert (read.objective, read.status, read.seed) == (result.objective, result.status, result.seed)


def test_masks(tmp_path):
    torch = pytest.importorskip("torch")
    from prunesolve.bridges.torch.masks import save_masks

    torch.set_num_threads(1)
    net = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.ReLU(), torch.nn.Linear(4, 2))
    group = ps.Group("0", 4, [("0", "out", np.arange(4)[:, None]), ("2", "in", np.arange(4)[:, None])])
    made = ps.masks(ps.Selection([group], [True, False, True, True]), net)
    save_masks(made, tmp_path / "masks.safetensors")
    read = ps.load(tmp_path / "masks.safetensors")
    assert read["0"].tolist() == [True, False, True, True]
    assert read.inputs["2"].tolist() == [True, False, True, True]


@pytest.mark.parametrize("suffix", [".coo", ".bqm"])
def test_instance_files_of_others(tmp_path, suffix):
    free = ps.BinaryQuadratic([-1.0, 2.0], [[0.0, 3.0], [3.0, 0.0]])
    readers.write(free, tmp_path / f"instance{suffix}")
    read = ps.load(tmp_path / f"instance{suffix}")
    assert [read.value(x) for x in ([0, 0], [1, 0], [0, 1], [1, 1])] == [0.0, -1.0, 2.0, 4.0]


def test_one_of_several_instances_in_a_file(tmp_path):
    (tmp_path / "two.txt").write_text("2\n2 1\n1 1 5\n3 2\n1 1 -7\n2 3 4\n")
    assert ps.load(tmp_path / "two.txt", index=2).n == 3


@pytest.mark.parametrize(
    ("name", "content", "words"),
    [
        ("foreign.npz", b"no zip at all", "expected a problem or statistics that prunesolve wrote, got a truncated"),
        ("empty.npz", b"", "got a truncated or foreign file"),
        ("result.json", b'{"answer": 42}', "expected a result, report or widths that prunesolve wrote"),
        ("list.json", b"[1, 2]", "expected a result, report or widths that prunesolve wrote"),
        ("broken.json", b'{"answer": ', "expected a result, report or widths that prunesolve wrote"),
        ("binary.json", b"\xff\xfe\x00", "expected a result, report or widths that prunesolve wrote"),
        ("notes.txt", b"dear diary\n", "notes.txt"),
    ],
)
def test_a_foreign_file_is_refused_in_words(tmp_path, name, content, words):
    (tmp_path / name).write_bytes(content)
    with pytest.raises(ps.InvalidProblem, match=words):
        ps.load(tmp_path / name)


def test_a_truncated_file_of_ours_is_refused(tmp_path):
    instance().save(tmp_path / "instance.npz")
    whole = (tmp_path / "instance.npz").read_bytes()
    (tmp_path / "instance.npz").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ps.InvalidProblem, match="truncated or foreign"):
        ps.load(tmp_path / "instance.npz")


def test_arrays_of_another_program_and_pickles_are_refused(tmp_path):
    np.savez(tmp_path / "arrays.npz", a=np.ones(3))
    np.savez(tmp_path / "pickles.npz", format=np.array([{}], dtype=object), kind=np.array([{}], dtype=object))
    for name in ("arrays.npz", "pickles.npz"):
        with pytest.raises(ps.InvalidProblem, match="got a truncated or foreign file"):
            ps.load(tmp_path / name)


def test_another_kind_of_ours_is_named(tmp_path):
    from prunesolve.problems._npz import write

    write(tmp_path / "levels.npz", "levels", {"a": np.ones(2)})
    with pytest.raises(ps.InvalidProblem, match="got a file of kind 'levels'"):
        ps.load(tmp_path / "levels.npz")


def test_a_missing_file_and_a_folder(tmp_path):
    for path in (tmp_path / "nothing.npz", tmp_path):
        with pytest.raises(FileNotFoundError, match="no such file"):
            ps.load(path)


def test_an_index_into_a_file_that_holds_one_thing(tmp_path):
    instance().save(tmp_path / "instance.npz")
    assert ps.load(tmp_path / "instance.npz", index=1).n == 10
    with pytest.raises(ps.InvalidProblem, match="holds one thing, got index 2"):
        ps.load(tmp_path / "instance.npz", index=2)
