"""Sections, folded ones, code, files of tables; bands, panels in rows and logarithmic axes of figures."""

from __future__ import annotations

import re
from xml.etree import ElementTree

import numpy as np
import pytest

from prunesolve.report import PALETTE, Code, Curve, Section, Table, lines, write_report

TABLE = Table("", {"n": "d"}, [[1]], file="tables/a&b.csv")


def page(tmp_path, *blocks):
    write_report(tmp_path / "r.html", "T", blocks)
    text = (tmp_path / "r.html").read_text(encoding="utf-8")
    return text[text.index("<body>") : text.index("<script>")]


def test_blocks_inside_a_section_are_one_level_lower(tmp_path):
    text = page(tmp_path, Section("Outer", ["plain", Table("Inner", {"n": "d"}, [[1]])], note="a < b"))
    assert re.findall(r"<h(\d)>(.*?)</h\1>", text) == [("1", "T"), ("2", "Outer"), ("3", "Inner")]
    assert "<p class='note'>a &lt; b</p><p>plain</p>" in text


def test_folded_sections_open_by_a_click(tmp_path):
    text = page(tmp_path, Section("A & B", ["inside"], folded=True))
    assert "<details><summary>A &amp; B</summary><p>inside</p></details>" in text


def test_code_keeps_its_lines(tmp_path):
    assert "<pre>a &lt; b\n    c</pre>" in page(tmp_path, Code("a < b\n    c"))


def test_a_table_names_its_file_and_needs_no_heading(tmp_path):
    text = page(tmp_path, TABLE)
    assert "<a href='tables/a&amp;b.csv'>tables/a&amp;b.csv</a>" in text
    assert "<h2>" not in text


def drawn(panels, **options):
    return ElementTree.fromstring(lines(panels, title="t", x="x", y="y", **options).svg)


def texts(svg):
    return [(e.text or "").strip() for e in svg.iter() if e.tag.endswith("text")]


def shades(svg):
    """Outlines of what is filled in a curve's colour and transparent."""
    found = [e for e in svg.iter() if e.tag.endswith("path") or e.tag.endswith("use")]
    return [e.get("d") or "" for e in found if "opacity: 0.15" in (e.get("style") or "")]


def test_bands_are_drawn_where_they_are_given():
    plain, banded = Curve("a", [1, 2], [3, 4]), Curve("b", [1, 2], [3, 4], 1, low=[2, 3], high=[4, 5])
    assert len(shades(drawn({"": [plain]}))) == 0
    assert len(shades(drawn({"": [plain, banded]}))) == 1
    holed = Curve("b", np.arange(6.0), np.ones(6), low=np.array([0, 0, np.nan, 0, 0, 0]), high=np.ones(6))
    assert sum(d.count("M") for d in shades(drawn({"": [holed]}))) == 2


def test_panels_wrap():
    panels = {f"panel {i}": [Curve("a", [1, 2], [3, 4])] for i in range(4)}
    one, two = drawn(panels), drawn(panels, columns=3)
    heights = [float(svg.get("height").removesuffix("pt")) for svg in (one, two)]
    assert heights[1] > 1.8 * heights[0]
    assert set(panels) <= set(texts(two))
    assert (texts(one).count("y"), texts(two).count("y")) == (1, 2)


@pytest.mark.parametrize("value", [1e-4, 100 * 1e-6, 1.0, 3e7])
@pytest.mark.parametrize("banded", [False, True])
def test_a_single_value_has_room_on_logarithmic_axes(value, banded):
    band = {"low": [value, value], "high": [value, value]} if banded else {}
    curve = Curve("a", [value, value], [value, value], **band)
    assert drawn({"": [curve]}, log_x=True, log_y=True, steps=True) is not None


@pytest.mark.parametrize(
    ("high", "labels"), [(1e4, {"1", "100"}), (20.0, {"1", "2", "5", "10"}), (1.6, {"1.2", "1.4"})]
)
def test_logarithmic_axes_have_plain_figures(high, labels):
    assert labels <= set(texts(drawn({"": [Curve("a", [1, high], [1, 1])]}, log_x=True)))


def test_names_with_dollar_signs_are_no_formulas():
    assert {"a$b$", "$c"} <= set(texts(drawn({"$c": [Curve("a$b$", [1, 2], [1, 2])]})))


def test_past_the_palette_dashes_tell_curves_apart():
    curves = [Curve(f"c{i}", [1, 2], [i, i], style=i) for i in (0, len(PALETTE))]
    styles = [e.get("style") or "" for e in drawn({"": curves}).iter() if PALETTE[0].lower() in (e.get("style") or "")]
    assert {"stroke-dasharray" in style for style in styles if "fill: none" in style} == {True, False}


def test_markers_can_be_few():
    x = np.arange(1.0, 101.0)
    every, few = (drawn({"": [Curve("a", x, x, every=k)]}) for k in (1, 10))
    counts = [sum(e.tag.endswith("use") for e in svg.iter()) for svg in (every, few)]
    assert counts[0] - counts[1] == 90
