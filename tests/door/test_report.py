"""The HTML page: self-contained, escaped, whole or not at all; figures that parse as SVG and repeat byte by byte."""

from __future__ import annotations

import math
import subprocess
import sys
from html.parser import HTMLParser
from xml.etree import ElementTree

import numpy as np
import pytest

from prunesolve.problems import InvalidProblem
from prunesolve.report import Curve, Table, counts, front_figure, hypervolume_figure, lines, write_report

TABLE = Table(
    "Rows & <columns>",
    {"name": "", "value": ".2f"},
    [("b'\"<x>", 10.0), ("a", -2.0), ("none", None), ("nan", float("nan"))],
)


def figure():
    curves = [Curve("one", [20, 36, 50], [3.0, 2.0, 1.0]), Curve("two", [20, 36, 50], [1.0, 2.0, 4.0], style=1)]
    return lines(
        {"left": curves, "right": curves[:1]}, title="A <figure>", x="removed / %", y="PSNR / dB", ticks=[20, 50]
    )


class Page(HTMLParser):
    """Cells, headings and whatever would be fetched."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.cells: list[tuple[str | None, str]] = []
        self.fetched: list[str] = []
        self.tags: list[str] = []
        self._cell: str | None = None
        self._inside = False
        self.feed(text)

    def handle_starttag(self, tag, attrs):
        named = dict(attrs)
        self.tags.append(tag)
        outside = [v for k, v in named.items() if k in ("src", "href", "xlink:href") and v and not v.startswith("#")]
        self.fetched += outside + ([tag] if tag in ("link", "iframe", "img") else [])
        if tag == "td":
            self._inside, self._cell = True, named["data-value"]
            self.cells.append((self._cell, ""))

    def handle_endtag(self, tag):
        self._inside = self._inside and tag != "td"

    def handle_data(self, data):
        if self._inside:
            self.cells[-1] = (self.cells[-1][0], self.cells[-1][1] + data)


@pytest.fixture
def page(tmp_path):
    write_report(tmp_path / "new" / "r.html", "A & B", ["plain <b>", TABLE, figure()], lead="First.", facts={"n": "3"})
    return (tmp_path / "new" / "r.html").read_text(encoding="utf-8")


def test_cells_show_rounded_values_and_sort_by_raw_ones(page):
    read = Page(page)
    assert read.cells == [
        ("b'\"<x>", "b'\"<x>"),
        ("10.0", "10.00"),
        ("a", "a"),
        ("-2.0", "−2.00"),
        ("none", "none"),
        ("", "–"),
        ("nan", "nan"),
        ("", "–"),
    ]


def test_page_is_self_contained(page):
    read = Page(page)
    assert read.fetched == []
    assert read.tags.count("svg") == 1
    assert "@import" not in page
    assert "url(http" not in page


def test_text_is_escaped(page):
    assert "<title>A &amp; B</title>" in page
    assert "<p>plain &lt;b&gt;</p>" in page
    assert "Rows &amp; &lt;columns&gt;" in page


def test_figures_are_well_formed_labelled_and_repeat():
    svg = figure().svg
    text = " ".join(ElementTree.fromstring(svg).itertext())
    for label in ("removed / %", "PSNR / dB", "left", "right", "one", "two"):
        assert label in text
    assert figure().svg == svg


def test_counts_show_every_number():
    kept = {"L1": {"conv1": (3, 24), "conv2": (48, 48)}, "random": {"conv1": (11, 24), "conv2": (17, 48)}}
    other = {method: {layer: (size, size) for layer, (_, size) in layers.items()} for method, layers in kept.items()}
    drawn = counts({"20 % removed": kept, "36 % removed": other, "50 % removed": kept}, title="Kept")
    words = [word.strip() for word in ElementTree.fromstring(drawn.svg).itertext()]
    assert sorted(w for w in words if w in ("3", "11", "17")) == ["11", "11", "17", "17", "3", "3"]
    assert words.count("24") == 2
    assert words.count("48") == 4
    assert {"L1", "random", "conv1 (24)", "conv2 (48)", "36 % removed"} <= set(words)


def clip_paths(title):
    drawn = lines({"p": [Curve("c", [1, 2], [1, 2])]}, title=title, x="x", y="y")
    return {e.get("id") for e in ElementTree.fromstring(drawn.svg).iter() if e.tag.endswith("clipPath")}


def test_two_figures_share_no_id():
    assert clip_paths("first")
    assert not clip_paths("first") & clip_paths("second")


def test_nothing_half_written(tmp_path):
    def blocks():
        yield "good"
        raise RuntimeError("no more")

    with pytest.raises(RuntimeError, match="no more"):
        write_report(tmp_path / "r.html", "T", blocks())
    assert list(tmp_path.iterdir()) == []


def test_ragged_rows_are_refused():
    with pytest.raises(InvalidProblem, match=r"expected 2 values a row, got 1 in row 1"):
        Table("T", {"a": "", "b": ""}, [("x", "y"), ("x",)])


def test_report_loads_matplotlib_only_to_draw():
    code = "import sys, prunesolve.report; print([m for m in ('matplotlib', 'torch', 'pandas') if m in sys.modules])"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert told.stdout.strip() == "[]"


FRONT = np.array([[0.1, 100.0, 9.0], [0.2, 60.0, 7.0], [4.0, 10.0, 1.0]])


def texts(figure):
    return {e.text for e in ElementTree.fromstring(figure.svg).iter() if e.tag.endswith("text")}


def test_a_front_is_drawn_with_what_it_is_compared_to():
    drawn = front_figure(
        FRONT[:, :2],
        names=("loss", "parameters / %"),
        scales=(1.0, 1.0),
        knee=1,
        guard=[0.15, 0.2, math.nan],
        baselines={"removal path": FRONT[:, :2] * 1.1, "none found": FRONT[:0, :2]},
    )
    assert {"front", "front, guard half", "knee", "removal path", "Parameters", "parameters / %", "loss"} <= texts(
        drawn
    )
    assert "none found" not in texts(drawn)
    assert "guard half" in drawn.note
    plain = front_figure(FRONT[:, :2], names=("loss", "parameters / %"), scales=(1.0, 1.0), knee=1)
    assert "front, guard half" not in texts(plain)
    assert "guard" not in plain.note


def test_two_costs_take_two_panels():
    names = ("loss", "parameters / % of the dense network", "multiply-adds / % of the dense network")
    drawn = front_figure(FRONT, names=names, scales=(1.0, 1.0, 10.0), knee=0)
    assert {"Parameters", "Multiply-adds", "% of the dense network"} <= texts(drawn)


def test_the_hypervolume_is_drawn_over_evaluations():
    drawn = hypervolume_figure([(0.1, 5, -1.0, None), (0.2, 9, -3.0, None)], baselines={"removal path alone": 2.0})
    assert {"evaluations", "hypervolume", "front", "removal path alone"} <= texts(drawn)
