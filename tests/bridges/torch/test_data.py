from __future__ import annotations

import logging
import pickle

import numpy as np
import pytest
import torch
from torch.utils.data import DataLoader, TensorDataset

from prunesolve.bridges.torch import data as module
from prunesolve.bridges.torch.data import Batches
from prunesolve.problems import InvalidProblem

INPUTS = torch.arange(10.0).reshape(5, 2)
TARGETS = torch.tensor([0, 1, 2, 1, 0])


def read(batches):
    pairs = list(batches)
    targets = None if pairs[0][1] is None else torch.cat([t for _, t in pairs])
    return torch.cat([x for x, _ in pairs]), targets


@pytest.mark.parametrize(
    "data",
    [
        (INPUTS, TARGETS),
        (INPUTS.numpy(), TARGETS.numpy()),
        [(INPUTS[:3], TARGETS[:3]), [INPUTS[3:], TARGETS[3:]]],
        ((INPUTS[:3], TARGETS[:3]), (INPUTS[3:], TARGETS[3:])),
        DataLoader(TensorDataset(INPUTS, TARGETS), batch_size=2),
        Batches((INPUTS, TARGETS)),
    ],
    ids=["tuple", "arrays", "list", "tuple of batches", "loader", "batches"],
)
def test_every_kind_of_data_reads_the_same_twice(data):
    batches = Batches(data)
    for _ in range(2):
        inputs, targets = read(batches)
        assert torch.equal(inputs, INPUTS)
        assert torch.equal(targets, TARGETS)


def test_a_tuple_of_tensors_is_cut_and_an_iterable_is_not():
    assert [len(x) for x, _ in Batches((INPUTS, TARGETS), size=2)] == [2, 2, 1]
    assert [len(x) for x, _ in Batches([(INPUTS, TARGETS)], size=2)] == [5]


@pytest.mark.parametrize("data", [INPUTS, (INPUTS, None), [INPUTS], [(INPUTS,)], [(INPUTS, None)]])
def test_targets_may_be_missing(data):
    inputs, targets = read(Batches(data))
    assert torch.equal(inputs, INPUTS)
    assert targets is None


def test_several_inputs_come_as_a_tuple():
    batches = Batches(((INPUTS, INPUTS + 1), TARGETS), size=2)
    (first, second), targets = next(iter(batches))
    assert torch.equal(second, first + 1)
    assert len(targets) == 2
    assert [tuple(part.shape) for part in batches.example(1)] == [(1, 2), (1, 2)]


def test_a_one_shot_iterator_is_kept_with_a_notice(caplog):
    with caplog.at_level(logging.WARNING, logger="prunesolve"):
        batches = Batches((INPUTS[i : i + 1], TARGETS[i : i + 1]) for i in range(5))
    assert "kept in memory" in caplog.text
    assert torch.equal(read(batches)[0], read(batches)[0])
    assert len(batches) == 5


def test_a_large_one_shot_iterator_is_refused_before_it_is_read_whole(monkeypatch):
    monkeypatch.setattr(module, "_LIMIT", 100)
    taken = []

    def stream():
        for i in range(1000):
            taken.append(i)
            yield INPUTS, TARGETS

    with pytest.raises(InvalidProblem, match="list or a DataLoader"):
        Batches(stream())
    assert len(taken) == 2


@pytest.mark.parametrize("data", [[], iter([]), (INPUTS[:0], TARGETS[:0])])
def test_nothing_is_refused_in_words(data):
    with pytest.raises(InvalidProblem, match="at least one sample"):
        list(Batches(data))


@pytest.mark.parametrize(
    ("data", "words"),
    [
        (3, "got int"),
        ([{"x": INPUTS}], "batch of dict"),
        ([(INPUTS, INPUTS, TARGETS)], "3 items"),
        ([(INPUTS, [0, 1])], "targets of type list"),
        ([(INPUTS, TARGETS[:2])], "differ in length"),
        (["ab"], "batch of str"),
    ],
)
def test_foreign_data_are_refused_in_words(data, words):
    with pytest.raises(InvalidProblem, match=words):
        list(Batches(data))


def test_classes_keep_their_samples_across_batches():
    inputs, targets = read(Batches((INPUTS, TARGETS), size=2).of_classes([1, 2]))
    assert targets.tolist() == [1, 2, 1]
    assert torch.equal(inputs, INPUTS[[1, 2, 3]])


@pytest.mark.parametrize("targets", [None, TARGETS.float(), TARGETS[:, None]])
def test_classes_need_integer_targets(targets):
    with pytest.raises(InvalidProblem, match="one integer target"):
        list(Batches((INPUTS, targets)).of_classes([1]))


def test_absent_classes_are_named():
    with pytest.raises(InvalidProblem, match=r"classes \[7\]"):
        list(Batches((INPUTS, TARGETS)).of_classes([7]))


def test_an_npz_file_comes_back_in_batches(tmp_path):
    np.savez(tmp_path / "data.npz", inputs=INPUTS.double().numpy(), targets=TARGETS.numpy().astype(np.uint8))
    batches = Batches.from_npz(tmp_path / "data.npz", size=2)
    inputs, targets = read(batches)
    assert inputs.dtype == torch.float32
    assert targets.dtype == torch.int64
    assert torch.equal(inputs, INPUTS)
    assert torch.equal(targets, TARGETS)


def test_bad_files_are_refused_in_words(tmp_path):
    np.savez(tmp_path / "missing.npz", inputs=INPUTS.numpy())
    np.savez(tmp_path / "pickle.npz", inputs=np.array([{}], dtype=object), targets=TARGETS.numpy())
    np.save(tmp_path / "single.npy", INPUTS.numpy())
    (tmp_path / "text.npz").write_text("no archive")
    (tmp_path / "raw.npz").write_bytes(pickle.dumps([1, 2]))
    bad = {"missing": "'targets'", "pickle": "without pickles", "text": "another file", "raw": "another file"}
    for name, words in bad.items():
        with pytest.raises(InvalidProblem, match=words):
            Batches.from_npz(tmp_path / f"{name}.npz")
    with pytest.raises(InvalidProblem, match="inputs and targets"):
        Batches.from_npz(tmp_path / "single.npy")
    with pytest.raises(FileNotFoundError):
        Batches.from_npz(tmp_path / "none.npz")


@pytest.mark.parametrize("count", [1, 2, 3, 4, 10, 11, 50])
def test_the_first_samples_are_those_and_their_targets(count):
    x, y = torch.arange(11.0)[:, None], torch.arange(11)
    for data in (Batches((x, y), size=4), [(x[:3], y[:3]), (x[3:], y[3:])]):
        first = Batches(data).first(count)
        assert first.in_memory
        for _ in range(2):
            assert torch.cat([inputs for inputs, _ in first]).flatten().tolist() == list(range(min(count, 11)))
            assert torch.cat([targets for _, targets in first]).tolist() == list(range(min(count, 11)))


def test_the_first_samples_of_several_inputs_of_classes_and_without_targets():
    x = torch.arange(6.0)[:, None]
    ((one, two), targets), *rest = Batches([((x, -x), torch.arange(6) % 3)]).first(4)
    assert not rest
    assert (one.flatten().tolist(), two.flatten().tolist(), len(targets)) == ([0, 1, 2, 3], [0, -1, -2, -3], 4)
    of_one = Batches((x, torch.arange(6) % 3), size=2).of_classes([1]).first(2)
    assert [inputs.flatten().tolist() for inputs, _ in of_one] == [[1.0], [4.0]]
    assert all(targets is None for _, targets in Batches(x, size=4).first(5))


def test_the_first_samples_of_a_shuffling_source_stay_the_same():
    loader = DataLoader(torch.arange(50.0)[:, None], batch_size=8, shuffle=True)
    first = Batches(loader).first(20)
    assert [x.tolist() for x, _ in first] == [x.tolist() for x, _ in first]
    assert [len(x) for x, _ in first] == [8, 8, 4]
