"""The demo's data and networks: parts that do not meet, noise of the stated variance, stated metrics reached."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from prunesolve import demo_networks as demo
from prunesolve.bridges.torch.evaluate import evaluate
from prunesolve.problems import InvalidProblem

# Photographs are JPEG files: another decoder may differ by a grey level, and with it the noise that is drawn.
TOLERANCE = {"classify": 1e-2, "denoise": 0.1}


@pytest.mark.parametrize("task", demo.TASKS)
def test_trained_network_reaches_its_stated_metric(task):
    facts = demo.training_facts(task)
    network, data = demo.load_network(task), demo.demo_task(task).data()
    assert not network.training
    assert evaluate(network, data.test)["metric"] == pytest.approx(facts["test"], abs=TOLERANCE[task])
    assert evaluate(network, data.validation)["metric"] == pytest.approx(facts["validation"], abs=TOLERANCE[task])
    assert facts["command"].startswith("python benchmarks/train_demo_networks.py")


def test_digits_are_recognised_and_noise_is_taken_away():
    assert demo.training_facts("classify")["test"] >= 98.0
    facts = demo.training_facts("denoise")
    noisy = evaluate(torch.nn.Identity(), demo.photo_data().test)["metric"]
    assert noisy == pytest.approx(facts["noisy"], abs=0.1)
    assert facts["test"] >= noisy + 5.0


@pytest.mark.parametrize("task", demo.TASKS)
def test_loading_leaves_the_random_state_alone(task):
    before = torch.get_rng_state()
    demo.load_network(task)
    assert torch.equal(before, torch.get_rng_state())


def test_digit_parts_are_disjoint_and_complete():
    from sklearn.datasets import load_digits

    parts = [demo.digits(part)[0].flatten(1).numpy() for part in demo.PLACES]
    assert [len(part) for part in parts] == [1000, 297, 500]
    everything, expected = np.concatenate(parts) * 16, load_digits().data
    assert np.array_equal(everything[np.lexsort(everything.T)], expected[np.lexsort(expected.T)])


def test_photograph_regions_do_not_overlap():
    columns = [c for region in demo.REGIONS.values() for c in range(region.start, region.stop)]
    assert sorted(columns) == list(range(640))
    assert demo.photographs("test")[0].shape == (3, 427, 160)


def test_photo_batches_repeat_and_pair_noisy_with_clean():
    one, two = demo.photo_data(), demo.photo_data()
    for (noisy, clean), (again, same) in zip(one.test, two.test, strict=True):
        assert torch.equal(noisy, again)
        assert torch.equal(clean, same)
        assert noisy.shape == clean.shape
        assert float(clean.min()) >= 0
        assert float(clean.max()) <= 1


@pytest.mark.parametrize("level", [0.0, 0.2, 0.9])
def test_sensor_noise_has_the_stated_mean_and_variance(level):
    noisy = demo.sensor(np.full(200_000, level), np.random.default_rng(1), photons=80.0, read=0.02)
    variance = level / 80 + 0.02**2
    assert noisy.mean() == pytest.approx(level, abs=5 * (variance / len(noisy)) ** 0.5)
    assert noisy.var() == pytest.approx(variance, rel=0.03)


def test_unknown_task_names_the_nearest():
    with pytest.raises(InvalidProblem, match="classify"):
        demo.demo_task("clasify")


def test_missing_weights_say_how_to_train(monkeypatch, tmp_path):
    monkeypatch.setattr(demo, "WEIGHTS", tmp_path)
    with pytest.raises(InvalidProblem, match=r"python benchmarks/train_demo_networks\.py --task denoise"):
        demo.load_network("denoise")
