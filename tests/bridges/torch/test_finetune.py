"""Training against torch's own optimiser step by step; what must not move does not move by a bit."""

from __future__ import annotations

import copy

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from prunesolve.bridges.torch._drawing import Drawing
from prunesolve.bridges.torch.data import Batches
from prunesolve.bridges.torch.evaluate import evaluate
from prunesolve.bridges.torch.finetune import finetune
from prunesolve.bridges.torch.masks import Masks
from prunesolve.problems import InvalidProblem


class Net(nn.Module):
    """Two convolutions with BatchNorm, dropout, a head; (B, 3, 6, 6) -> (B, 3)."""

    def __init__(self):
        super().__init__()
        self.conv1, self.bn1 = nn.Conv2d(3, 5, 3, padding=1), nn.BatchNorm2d(5)
        self.conv2, self.bn2 = nn.Conv2d(5, 4, 3), nn.BatchNorm2d(4)
        self.drop, self.head = nn.Dropout(0.3), nn.Linear(4, 3)

    def forward(self, x):
        x = F.relu(self.bn1(self.conv1(x)))
        return self.head(self.drop(F.relu(self.bn2(self.conv2(x))).mean((2, 3))))


def net(seed=0):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Net().eval()


def data(count=20, seed=1):
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(count, 3, 6, 6, generator=generator), torch.arange(count) % 3


def state(model):
    return {name: tensor.clone() for name, tensor in model.state_dict().items()}


def same(one, other):
    return all(torch.equal(one[name], other[name]) for name in one)


@pytest.mark.parametrize("schedule", ["cosine", "constant"])
@pytest.mark.parametrize(("labels", "teacher"), [(True, False), (False, True), (True, True)])
def test_it_is_sgd_on_the_stated_objective(schedule, labels, teacher):
    """The same steps written out with torch.optim on batches that come in a known order."""
    mlp = lambda s: nn.Sequential(nn.Linear(4, 6), nn.Tanh(), nn.Linear(6, 3)).double()  # noqa: E731
    torch.manual_seed(0)
    network, dense = mlp(0), mlp(1)
    batches = [(torch.randn(5, 4).double(), torch.randint(0, 3, (5,))) for _ in range(3)]
    expected = copy.deepcopy(network)
    optimiser = torch.optim.SGD(expected.parameters(), 0.2, momentum=0.8, weight_decay=0.01)
    for step in range(6):
        if schedule == "cosine":
            optimiser.param_groups[0]["lr"] = 0.1 * (1 + np.cos(np.pi * step / 6))
        x, y = batches[step % 3]
        own, other = expected(x), dense(x).detach()
        kl = 9 * F.kl_div(F.log_softmax(own / 3, 1), F.softmax(other / 3, 1), reduction="batchmean")
        ce = F.cross_entropy(own, y)
        optimiser.zero_grad()
        (0.25 * ce + 0.75 * kl if labels and teacher else ce if labels else kl).backward()
        optimiser.step()

    class InOrder:  # a source that is no list is read as it comes
        def __iter__(self):
            return iter([(x, y if labels else None) for x, y in batches])

        def __len__(self):
            return 3

    options = {"teacher": dense} if teacher else {}
    trained = finetune(
        network, InOrder(), lr=0.2, momentum=0.8, weight_decay=0.01, epochs=2, share=0.75, temperature=3.0,
        schedule=schedule, **options,
    )  # fmt: skip
    for p, q in zip(trained.parameters(), expected.parameters(), strict=True):
        torch.testing.assert_close(p, q, rtol=1e-9, atol=1e-11)


def test_values_are_learned_by_their_squares():
    torch.manual_seed(0)
    network, dense = nn.Conv2d(1, 1, 3, padding=1), nn.Conv2d(1, 1, 3, padding=1)
    x = torch.randn(8, 1, 5, 5)
    expected = copy.deepcopy(network)
    F.mse_loss(expected(x), dense(x).detach()).backward()
    trained = finetune(network, (x, None), teacher=dense, lr=0.3, momentum=0.0, weight_decay=0.0)
    torch.testing.assert_close(trained.weight, expected.weight - 0.3 * expected.weight.grad)


def test_a_distance_of_ones_own_is_taken():
    torch.manual_seed(0)
    network, dense, x = nn.Linear(3, 2), nn.Linear(3, 2), torch.randn(6, 3)
    expected = copy.deepcopy(network)
    (expected(x) - dense(x).detach()).abs().mean().backward()
    distance = lambda a, b: (a - b).abs().mean(1)  # noqa: E731
    trained = finetune(network, (x, None), teacher=dense, distance=distance, lr=0.3, weight_decay=0.0)
    torch.testing.assert_close(trained.weight, expected.weight - 0.3 * expected.weight.grad)


def test_the_network_the_teacher_and_torchs_random_state_stay_as_they_are():
    network, teacher = net(0), net(1)
    network.conv1.bias.requires_grad_(False)
    network.drop.train()
    before, taught, random = state(network), state(teacher), torch.get_rng_state()
    trained = finetune(network, data(), teacher=teacher, lr=0.1)
    assert same(state(network), before)
    assert same(state(teacher), taught)
    assert torch.equal(torch.get_rng_state(), random)
    assert all(p.grad is None for m in (network, teacher, trained) for p in m.parameters())
    flags = lambda m: [x.training for x in m.modules()]  # noqa: E731
    assert flags(trained) == flags(network)
    assert not trained.conv1.bias.requires_grad
    assert torch.equal(trained.conv1.bias, before["conv1.bias"])
    assert trained.conv2.weight.requires_grad
    assert not torch.equal(trained.conv2.weight, before["conv2.weight"])


def test_the_same_seed_gives_the_same_network_and_another_seed_another():
    runs = [state(finetune(net(), data(), epochs=2, seed=s)) for s in (3, 3, 4)]
    assert same(runs[0], runs[1])
    assert not same(runs[0], runs[2])


def test_what_is_frozen_is_the_same_bit_by_bit():
    before = state(net())
    after = state(finetune(net(), data(), frozen=["conv1", "bn1"], lr=0.1, epochs=2))
    for name in before:
        held = name.startswith(("conv1.", "bn1."))
        assert torch.equal(before[name], after[name]) == held, name


def test_batchnorm_follows_the_batches_or_keeps_its_statistics():
    before = state(net())
    running = [n for n in before if "running" in n or "tracked" in n]
    for mode in ("train", "eval"):
        after = state(finetune(net(), data(), batchnorm=mode, lr=0.1))
        assert all(torch.equal(before[n], after[n]) == (mode == "eval") for n in running)
        assert not torch.equal(before["bn1.weight"], after["bn1.weight"])


def test_masked_weights_stay_zero_and_the_others_learn():
    mask = torch.rand(4, 5, 3, 3, generator=torch.Generator().manual_seed(0)) < 0.5
    rows = torch.tensor([True, False, True, True, True])
    masks = Masks({"conv2.weight": mask, "conv1": rows, "bn1": rows}, {"conv2": rows})
    trained = finetune(net(), data(), masks=masks, lr=0.1, epochs=3)
    alive = mask & rows[None, :, None, None]
    assert not trained.conv2.weight[~alive].any()
    assert bool((trained.conv2.weight[alive] != net().conv2.weight[alive]).all())
    assert not trained.conv1.weight[1].any()
    assert not trained.bn1.bias[1].any()
    plain = finetune(net(), data(), masks={"conv2.weight": mask}, lr=0.1)
    assert not plain.conv2.weight[~mask].any()


def test_a_damaged_network_recovers_what_it_gave():
    """A network of blobs, most of its hidden units gone: some epochs bring most of the accuracy back."""
    generator = torch.Generator().manual_seed(0)
    centres = 2.5 * torch.randn(4, 6, generator=generator)
    targets = torch.arange(400) % 4
    inputs = centres[targets] + torch.randn(400, 6, generator=generator)
    torch.manual_seed(0)
    dense = finetune(nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 4)), (inputs, targets), lr=0.1, epochs=8)
    hurt = copy.deepcopy(dense)
    kept = torch.arange(24) % 4 == 0
    score = lambda m: evaluate(m, (inputs, targets))["metric"]  # noqa: E731
    trained = finetune(hurt, (inputs, None), teacher=dense, masks={"0": kept}, lr=0.2, epochs=12)
    with torch.no_grad():
        hurt[0].weight[~kept] = 0
        hurt[0].bias[~kept] = 0
    assert score(dense) > 95
    assert score(hurt) < score(dense) - 3
    assert score(trained) > score(hurt) + 0.7 * (score(dense) - score(hurt))


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"data": torch.randn(4, 3, 6, 6)}, "expected targets to learn, or a teacher"),
        ({"lr": -1.0}, "lr: expected a number >= 0"),
        ({"epochs": -1}, "epochs"),
        ({"share": 1.5}, "share"),
        ({"temperature": 0.0}, "temperature"),
        ({"schedule": "linear"}, "schedule"),
        ({"batchnorm": "off"}, "batchnorm"),
        ({"frozen": ["conv9"]}, "conv9"),
        ({"frozen": [""]}, "nothing is left to train"),
        ({"masks": {"conv1": torch.ones(7, dtype=torch.bool)}}, "conv1"),
        ({"lr": 1e30, "epochs": 4}, "not finite"),
        ({"teacher": nn.Flatten()}, "teacher: expected answers like the network's"),
        ({"data": (torch.randn(4, 6), torch.zeros(4).long()), "augment": True}, "augment: expected images"),
        ({"data": []}, "at least one sample"),
    ],
)
def test_nonsense_is_refused_in_words(options, words):
    asked = {"data": data()} | options
    with pytest.raises(InvalidProblem, match=words):
        finetune(net(), asked.pop("data"), **asked)


# -- drawing and moving samples


@settings(max_examples=20, deadline=None)
@given(st.integers(1, 12), st.integers(1, 5), st.integers(0, 1000))
def test_every_epoch_draws_every_sample_once_but_for_one_left_alone(count, size, seed):
    inputs, targets = torch.arange(float(count)), torch.arange(count)
    drawing = Drawing(Batches((inputs, targets), size=size), augment=False, seed=seed)
    for _ in range(2):
        batches = list(drawing.epoch())
        assert len(batches) == len(drawing)
        drawn = torch.cat([x for x, _ in batches])
        assert torch.equal(drawn, torch.cat([y for _, y in batches]).float())
        missing = set(range(count)) - set(drawn.long().tolist())
        alone = count > size and size > 1 and count % size == 1
        assert len(missing) == (1 if alone or (size == 1 and count > 1) else 0)
        assert len(drawn) + len(missing) == count


def test_batches_of_unlike_shapes_stay_whole():
    batches = [(torch.ones(2, 3), None), (torch.ones(3, 4), None)]
    shapes = {tuple(x.shape) for x, _ in Drawing(Batches(batches), augment=None, seed=0).epoch()}
    assert shapes == {(2, 3), (3, 4)}


def test_images_are_flipped_and_moved_and_targets_that_are_images_with_them():
    """Every moved image is one of the 2 x 3 x 5 that flips and moves by an eighth make, and not all are alike."""
    images = torch.rand(40, 1, 8, 16, generator=torch.Generator().manual_seed(0)) + 0.5
    drawing = Drawing(Batches((images, 2 * images)), augment=True, seed=0)
    ((moved, wanted),) = drawing.epoch()
    torch.testing.assert_close(wanted, 2 * moved)
    seen = set()
    for image in moved:
        for i, original in enumerate(images):
            for flip in (False, True):
                padded = F.pad(original.flip(2) if flip else original, (2, 2, 1, 1))
                for down in range(3):
                    for right in range(5):
                        if torch.equal(image, padded[:, down : down + 8, right : right + 16]):
                            seen.add((i, flip, down, right))
    assert len({i for i, *_ in seen}) == 40
    assert {flip for _, flip, *_ in seen} == {False, True}
    assert {down for *_, down, _ in seen} == {0, 1, 2}
    assert {right for *_, right in seen} == {0, 1, 2, 3, 4}


@pytest.mark.parametrize(
    ("inputs", "targets", "moves"),
    [
        (torch.rand(6, 3, 8, 8), torch.arange(6), True),
        (torch.rand(6, 3, 8, 8), None, True),
        (torch.rand(6, 1, 8, 8), torch.arange(6), False),
        (torch.rand(6, 3, 8, 8), torch.rand(6, 3, 8, 8), False),
        (torch.rand(6, 8), torch.arange(6), False),
    ],
    ids=["classes", "nothing", "grey", "restored", "vectors"],
)
def test_only_photographs_with_a_class_are_moved_unasked(inputs, targets, moves):
    ((drawn, _),) = Drawing(Batches((inputs, targets)), augment=None, seed=0).epoch()
    known = {tuple(x.flatten().tolist()) for x in inputs}
    assert all(tuple(x.flatten().tolist()) in known for x in drawn) != moves
