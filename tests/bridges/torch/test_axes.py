"""Every hidden channel belongs to exactly one unit, and the sides of every layer say which."""

import numpy as np
import pytest
import torch
from torch import nn

from prunesolve.bridges.torch.axes import Axes
from prunesolve.bridges.torch.groups import find_groups
from prunesolve.problems import InvalidProblem

from .networks import NETWORKS, make

REFUSED = {
    "normed": "second: its channels are no units of their own: norm .LayerNorm.",
}


@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in REFUSED])
def test_every_channel_is_one_unit_of_one_group(name):
    net, x = make(name)
    axes = Axes.of(net, x)
    held = {node: np.zeros(len(side.group), dtype=int) for node, side in axes.sides.items()}
    for index, group in enumerate(axes.groups):
        for member in group.members:
            held[member.path, member.axis][member.channels] += 1
            side = axes.side(member.path, member.axis)
            assert (side.group[member.channels] == index).all()
            assert (side.unit[member.channels] == np.arange(group.size)[:, None]).all()
            assert (side.tap[member.channels] == np.arange(member.channels.shape[1])).all()
    for (path, axis), count in held.items():
        if axes.roles[path] == "depthwise" and axis == "in":
            continue
        assert np.array_equal(count == 1, axes.side(path, axis).group >= 0)
        assert count.max() <= 1


# the halves of a chunk have to stay equally long, which concerns removal alone
@pytest.mark.parametrize("name", [name for name in NETWORKS if name not in (*REFUSED, "halves")])
def test_removable_groups_are_parts_of_the_axes(name):
    """What removal proves to go together is one unit here too."""
    net, x = make(name)
    axes = Axes.of(net, x)
    for found in find_groups(net, x).groups:
        where = [axes.side(m.path, m.axis) for m in found.members]
        firsts = [m.channels[:, 0] for m in found.members]
        units = np.stack([s.group[c] * 10**4 + s.unit[c] for s, c in zip(where, firsts, strict=True)])
        assert (units == units[0]).all()
        assert len(set(units[0].tolist())) == found.size


@pytest.mark.parametrize(("name", "said"), REFUSED.items())
def test_what_has_no_units_is_refused_by_name(name, said):
    with pytest.raises(InvalidProblem, match=said):
        Axes.of(*make(name))


def test_a_padded_stream_is_three_groups():
    net, x = make("option-a")
    axes = Axes.of(net, x)
    sizes = {g.name: g.size for g in axes.groups}
    assert sizes == {
        "stem.0": 16, "one.first.0": 16, "two.conv1.0": 32, "two.conv2.0": 16, "three.conv1.0": 64, "three.conv2.0": 32,
    }  # fmt: skip
    assert [m.path for m in axes.writers("stem.0")] == ["stem.0", "one.second.0", "two.conv2.0", "three.conv2.0"]
    by_path = {m.path: m.channels[:, 0] for m in axes.writers("stem.0")}
    assert np.array_equal(by_path["two.conv2.0"], np.arange(16) + 8)
    assert np.array_equal(by_path["three.conv2.0"], np.arange(16) + 24)


def test_flattened_maps_are_several_columns_a_unit():
    net = nn.Sequential(nn.Conv2d(1, 3, 3), nn.BatchNorm2d(3), nn.Flatten(), nn.Linear(12, 2))
    axes = Axes.of(net.eval(), torch.zeros(1, 1, 4, 4))
    ((reader,), (norm,), (writer,)) = axes.readers("0"), axes.norms("0"), axes.writers("0")
    assert (reader.path, norm.path, writer.path) == ("3", "1", "0")
    assert np.array_equal(reader.channels, np.arange(12).reshape(3, 4))
    assert np.array_equal(axes.side("3", "in").tap, np.tile(np.arange(4), 3))
    assert (axes.inputs, axes.outputs, axes.order) == (("0",), ("3",), ("0", "1", "3"))


def test_names_do_not_depend_on_widths():
    def chunked(width):
        class Chunked(nn.Module):
            def __init__(self):
                super().__init__()
                self.one = nn.Linear(3, 2 * width)
                self.two, self.three = nn.Linear(width, 2), nn.Linear(width, 2, bias=False)

            def forward(self, x):
                left, right = self.one(x).chunk(2, 1)
                return self.two(left) + self.three(right)

        return Axes.of(Chunked(), torch.zeros(1, 3))

    names = [[(g.name, g.size) for g in chunked(width).groups] for width in (2, 5)]
    assert names == [[("one#1", 2), ("one#2", 2)], [("one#1", 5), ("one#2", 5)]]


def test_the_model_stays_as_it_is_and_unknown_names_are_said():
    net, x = make("residual")
    before = {name: value.clone() for name, value in net.state_dict().items()}
    axes = Axes.of(net.train(), x)
    assert net.training
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())
    with pytest.raises(InvalidProblem, match="unknown group 'stem.1'.*did you mean 'stem.0'"):
        axes.group("stem.1")
    with pytest.raises(InvalidProblem, match="unknown side of a layer"):
        axes.side("stem.0", "up")
