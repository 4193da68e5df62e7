"""One self-contained HTML page: tables that sort, figures drawn inline, nothing fetched from a network."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from html import escape
from io import StringIO
from pathlib import Path
from string import Template
from typing import Any, TypeAlias

import numpy as np

from prunesolve.problems import InvalidProblem
from prunesolve.problems._npz import whole_file

# Okabe and Ito's palette, which readers of every colour vision can tell apart; markers say the same once more.
PALETTE = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#4D4D4D", "#56B4E9")
MARKERS = ("o", "s", "^", "D", "v", "P", "X")


@dataclass(frozen=True)
class Table:
    """Rows under headings; a click on a heading sorts by it.

    Parameters
    ----------
    title : str
        Heading of the section.
    columns : {heading: format}
        Format specification of each column's numbers, such as ".2f"; "" for text.
    rows : sequence of sequences
        One value per column; None shows as a dash.
    note : str
        A sentence or two under the heading.
    file : str
        Where the same rows stand as a file, relative to the page.
    """

    title: str
    columns: Mapping[str, str]
    rows: Sequence[Sequence[Any]]
    note: str = ""
    file: str = ""

    def __post_init__(self) -> None:
        for r, row in enumerate(self.rows):
            if len(row) != len(self.columns):
                raise InvalidProblem(
                    f"table {self.title!r}: expected {len(self.columns)} values a row, got {len(row)} in row {r}"
                )


@dataclass(frozen=True)
class Figure:
    """A drawing as SVG text: what `lines` and `counts` return."""

    title: str
    svg: str
    note: str = ""


@dataclass(frozen=True)
class Code:
    """Lines to be typed as they stand."""

    text: str


@dataclass(frozen=True)
class Section:
    """Blocks under a heading of their own, to be opened by a click where they are folded."""

    title: str
    blocks: Sequence[Block]
    note: str = ""
    folded: bool = False


Block: TypeAlias = "Table | Figure | Code | Section | str"
Points: TypeAlias = "Sequence[float] | np.ndarray[Any, Any]"


@dataclass(frozen=True)
class Curve:
    """Points (x, y) under a label; `style` is the place in the palette, shared by all curves of one thing.

    `joined` draws a line through them; `size` is that of the markers in points, by default that of the figure, and
    one point in `every` has one. `low` and `high` bound a band around the curve; NaN leaves a hole.
    """

    label: str
    x: Points
    y: Points
    style: int = 0
    joined: bool = True
    size: float | None = None
    every: int = 1
    low: Points | None = None
    high: Points | None = None


def write_report(
    path: str | Path,
    title: str,
    blocks: Iterable[Block],
    *,
    lead: str = "",
    facts: Mapping[str, str] | None = None,
) -> None:
    """Write the page, whole or not at all.

    Parameters
    ----------
    path : path
        The `.html` file; its folder is made.
    title : str
        Title and first heading.
    blocks : iterable of Table, Figure, Code, Section or str
        What the page shows, in order; a str is a paragraph.
    lead : str
        What the reader should know first.
    facts : {label: value}, optional
        A few figures shown large.

    Examples
    --------
    >>> import tempfile
    >>> folder = Path(tempfile.mkdtemp())
    >>> write_report(folder / "report.html", "Two", [Table("Rows", {"n": "d"}, [[1], [2]])])
    >>> "<td data-value='2'>2</td>" in (folder / "report.html").read_text(encoding="utf-8")
    True
    """
    tiles = "".join(f"<div><b>{escape(v)}</b><span>{escape(k)}</span></div>" for k, v in (facts or {}).items())
    page = _PAGE.substitute(
        title=escape(title),
        lead=f"<p class='lead'>{escape(lead)}</p>" if lead else "",
        facts=f"<div class='facts'>{tiles}</div>" if tiles else "",
        body="\n".join(_html(block) for block in blocks),
    )
    with whole_file(path) as file:
        file.write(page.encode())


def _html(block: Block, level: int = 2) -> str:
    if isinstance(block, str):
        return f"<p>{escape(block)}</p>"
    if isinstance(block, Code):
        return f"<pre>{escape(block.text)}</pre>"
    note = f"<p class='note'>{escape(block.note)}</p>" if block.note else ""
    if isinstance(block, Section):
        inner = "\n".join(_html(each, level + 1) for each in block.blocks)
        if block.folded:
            return f"<details><summary>{escape(block.title)}</summary>{note}{inner}</details>"
    else:
        inner = f"<figure>{block.svg}</figure>" if isinstance(block, Figure) else _table(block)
    heading = f"<h{level}>{escape(block.title)}</h{level}>" if block.title else ""
    return f"<section>{heading}{note}{inner}</section>"


def _table(table: Table) -> str:
    kinds = ["" if spec else " class='text'" for spec in table.columns.values()]
    head = "".join(
        f"<th scope='col'{kind}><button>{escape(heading)}</button></th>"
        for heading, kind in zip(table.columns, kinds, strict=True)
    )
    rows = "".join(
        "<tr>" + "".join(_cell(*each) for each in zip(row, table.columns.values(), kinds, strict=True)) + "</tr>"
        for row in table.rows
    )
    file = escape(table.file, quote=True)
    link = f"<p class='file'><a href='{file}'>{file}</a></p>" if file else ""
    return f"<div class='scroll'><table><thead><tr>{head}</tr></thead><tbody>{rows}</tbody></table></div>{link}"


def _cell(value: Any, spec: str, kind: str) -> str:
    return f"<td{kind} data-value='{_sort_key(value)}'>{escape(shown(value, spec))}</td>"


def _sort_key(value: Any) -> str:
    missing = value is None or (isinstance(value, float) and not math.isfinite(value))
    return "" if missing else escape(str(value), quote=True)


def shown(value: Any, spec: str) -> str:
    """A value in its column's format; a dash where there is none.

    Examples
    --------
    >>> shown(0.1234, ".2f"), shown(None, ".2f"), shown("L1", ""), shown(-0.5, ".1f")
    ('0.12', '–', 'L1', '−0.5')
    """
    if value is None or (isinstance(value, float) and not math.isfinite(value)):
        return "–"
    return format(value, spec).replace("-", "−") if spec else str(value)


# --- figures -------------------------------------------------------------------------------------------------------


def lines(
    panels: Mapping[str, Sequence[Curve]],
    *,
    title: str,
    x: str,
    y: str,
    note: str = "",
    references: Mapping[str, float] | None = None,
    log_x: bool = False,
    log_y: bool = False,
    steps: bool = False,
    ticks: Sequence[float] | None = None,
    columns: int | None = None,
) -> Figure:
    """Panels side by side, one legend for all.

    Parameters
    ----------
    panels : {panel title: curves}
        What is drawn.
    title, note : str
        Of the figure on the page.
    x, y : str
        Axis labels, with units. Each panel has a vertical scale of its own.
    references : {label: value}, optional
        Horizontal lines to compare with.
    log_x, log_y : bool
        Logarithmic axes.
    steps : bool
        Hold each value until the next point instead of joining points.
    ticks : sequence of float, optional
        Where the horizontal axis is labelled.
    columns : int, optional
        Panels in a row, by default all.

    Returns
    -------
    Figure
    """
    from matplotlib.figure import Figure as Canvas

    wide = min(len(panels), columns or len(panels))
    high = -(-len(panels) // wide)
    with _style(title):
        canvas = Canvas(figsize=(11.5 if len(panels) > 1 else 7.5, 0.3 + 3.4 * high), layout="constrained")
        grid = canvas.subplots(high, wide, squeeze=False)
        axes = grid.flat[: len(panels)]
        for axis in grid.flat[len(panels) :]:
            axis.set_visible(False)
        for axis, (heading, curves) in zip(axes, panels.items(), strict=True):
            axis.set(xscale="log" if log_x else "linear", yscale="log" if log_y else "linear")
            _fill(axis, curves, references or {}, steps)
            axis.set(title=_literal(heading), xlabel=x)
            for scale in (axis.xaxis,) * log_x + (axis.yaxis,) * log_y:
                _label_decades(scale)
            if ticks is not None:
                axis.set_xticks(ticks)
        for axis in grid[:, 0]:
            axis.set_ylabel(y)
        handles = {label: h for a in axes for h, label in zip(*a.get_legend_handles_labels(), strict=True)}
        canvas.legend(handles.values(), handles.keys(), loc="outside right upper")
        return Figure(title, _svg(canvas, title), note)


def _fill(axis: Any, curves: Sequence[Curve], references: Mapping[str, float], steps: bool) -> None:
    """Curves, then room around them, then what may ask for the limits."""
    for curve in curves:
        _draw(axis, curve, steps)
    _widen(axis)
    for curve in curves:
        _band(axis, curve, steps)
    for (label, value), dashes in zip(references.items(), ((4, 3), (1, 2)), strict=False):
        axis.axhline(value, color="#444", lw=1, ls=(0, dashes), label=label, zorder=1)


def _widen(axis: Any) -> None:
    """Room around a single value: matplotlib's own margin can be within rounding of nothing on a logarithmic axis."""
    (left, right), (low, high) = axis.dataLim.intervalx, axis.dataLim.intervaly
    sides = ((axis.get_xscale(), left, right), (axis.get_yscale(), low, high))
    x, y = (3.0 if scale == "log" and 0 < a <= b <= a * (1 + 1e-9) else 1.0 for scale, a, b in sides)
    if max(x, y) > 1:
        axis.update_datalim([(left / x, low / y), (right * x, high * y)])


def _label_decades(axis: Any) -> None:
    """Plain figures at powers of ten, at 1, 2 and 5 of each or evenly, as matplotlib's own take thrice the time."""
    from matplotlib.ticker import AutoLocator, FuncFormatter, LogLocator, NullLocator

    low, high = sorted(axis.get_view_interval())
    places = LogLocator(subs=(1.0,) if high > 50 * low else (1.0, 2.0, 5.0))
    axis.set_major_locator(places if high > 5 * low else AutoLocator())
    axis.set_major_formatter(FuncFormatter(lambda value, _: f"{value:g}"))
    axis.set_minor_locator(NullLocator())


def _literal(text: str) -> str:
    """Names of files and solvers may hold a dollar sign, which matplotlib takes for the begin of a formula."""
    return text.replace("$", r"\$")


def _draw(axis: Any, curve: Curve, steps: bool) -> None:
    colour, marker = PALETTE[curve.style % len(PALETTE)], MARKERS[curve.style % len(MARKERS)]
    shape: dict[str, Any] = {"drawstyle": "steps-post", "markersize": 3} if steps else {"markersize": 5}
    if curve.size is not None:
        shape["markersize"] = curve.size
    # past the end of the palette the dashes tell apart what shares a colour
    shape["linestyle"] = _DASHES[curve.style // len(PALETTE) % len(_DASHES)] if curve.joined else "none"
    if curve.every > 1:
        # curves that lie on one another keep their markers apart
        shape["markevery"] = (curve.style % curve.every, curve.every)
    axis.plot(curve.x, curve.y, color=colour, marker=marker, label=_literal(curve.label), **shape)


def _band(axis: Any, curve: Curve, steps: bool) -> None:
    if curve.low is not None and curve.high is not None:
        colour, held = PALETTE[curve.style % len(PALETTE)], "post" if steps else None
        axis.fill_between(curve.x, curve.low, curve.high, step=held, color=colour, alpha=0.15, linewidth=0)


_DASHES = ("-", "--", ":", "-.")


def front_figure(
    front: Any,
    *,
    names: Sequence[str],
    scales: Sequence[float],
    knee: int,
    guard: Any = None,
    baselines: Mapping[str, Any] | None = None,
) -> Figure:
    """A front, one panel for each cost: the error of its points, on data the search never saw too, and where it began.

    Parameters
    ----------
    front : (p, m) float
        The objectives, the error first.
    names : sequence of m str
        Axis labels.
    scales : sequence of m float
        What each objective is multiplied by, to be in the label's unit.
    knee : int
        The point to be marked.
    guard : (p,) float, optional
        The error on other data.
    baselines : {label: (q, m) float}, optional
        What to compare with.
    """
    values = np.asarray(front) * scales
    others = {label: np.asarray(path) * scales for label, path in (baselines or {}).items()}
    panels = {}
    for cost in range(1, values.shape[1]):
        curves = [_along(label, path, cost, 2 + i) for i, (label, path) in enumerate(others.items()) if len(path)]
        if guard is not None:
            unseen = np.column_stack([np.asarray(guard) * scales[0], values[:, 1:]])
            curves.append(_along("front, guard half", unseen, cost, 1, joined=False))
        curves.append(_along("front", values, cost, 0, joined=values.shape[1] == 2))
        curves.append(Curve("knee", [values[knee, cost]], [values[knee, 0]], 5, joined=False, size=9))
        panels[names[cost].partition(" / ")[0].capitalize()] = curves
    errors = np.concatenate([values[:, 0], *(path[:, 0] for path in others.values())])
    return lines(
        panels,
        title="The front",
        x=_common([name.partition(" / ")[2] for name in names[1:]], names),
        y=names[0],
        log_y=bool(errors.min() > 0 and errors.max() > _WIDE * errors.min()),
        note="No point of the front is beaten in every objective by another one that was evaluated."
        + ("" if guard is None else " The guard half of the data took no part in the search."),
    )


_WIDE = 20.0  # errors this many times apart need a logarithmic axis


def _along(label: str, values: Any, cost: int, style: int, joined: bool = True) -> Curve:
    order = np.argsort(values[:, cost], kind="stable")
    return Curve(label, values[order, cost], values[order, 0], style, joined=joined, size=4)


def _common(units: Sequence[str], names: Sequence[str]) -> str:
    """The axis label that the panels share."""
    return units[0] if len(set(units)) == 1 and units[0] and len(units) > 1 else names[1]


def hypervolume_figure(trace: Sequence[Any], *, baselines: Mapping[str, float]) -> Figure:
    """How the volume that a front dominates grew with the evaluations.

    Parameters
    ----------
    trace : sequence of TraceRow
        Of a result with several objectives, whose objective is minus the hypervolume.
    baselines : {label: hypervolume}
        Drawn as horizontal lines, two at most.
    """
    steps = [(row[1], -row[2]) for row in trace if row[2] is not None]
    return lines(
        {"": [Curve("front", [e for e, _ in steps], [v for _, v in steps])]},
        title="Hypervolume against evaluations",
        x="evaluations",
        y="hypervolume",
        references=baselines,
        steps=True,
        note="The volume between the front and the reference point; more is better.",
    )


Kept = Mapping[str, Mapping[str, tuple[int, int]]]


def counts(panels: Mapping[str, Kept], *, title: str, note: str = "") -> Figure:
    """How many units each method keeps in each layer, the shade saying the share; panels two by two.

    Parameters
    ----------
    panels : {panel title: {method: {layer: (kept, size)}}}
        `Selection.counts` of each method; all panels name the same methods and layers.
    title, note : str
        Of the figure on the page.

    Returns
    -------
    Figure
    """
    from matplotlib.figure import Figure as Canvas

    first = next(iter(panels.values()))
    layers = {layer: size for layer, (_, size) in next(iter(first.values())).items()}
    columns, rows = min(2, len(panels)), -(-len(panels) // 2)
    with _style(title):
        canvas = Canvas(figsize=(11.5, 0.2 + (1.0 + 0.27 * len(first)) * rows), layout="constrained")
        axes = canvas.subplots(rows, columns, squeeze=False, sharex=True, sharey=True)
        for axis, (heading, kept) in zip(axes.flat, panels.items(), strict=False):
            shades = _shade(axis, kept)
            axis.set_title(heading)
        for axis in axes.flat[len(panels) :]:
            axis.set_visible(False)
        for axis in axes[-1]:
            named = [f"{layer} ({size})" for layer, size in layers.items()]
            axis.set_xticks(range(len(layers)), named, rotation=25, ha="right", rotation_mode="anchor")
        canvas.colorbar(shades, ax=axes, label="share of units kept", ticks=[0, 0.5, 1], aspect=30).outline.set_visible(
            False
        )
        return Figure(title, _svg(canvas, title), note)


def _shade(axis: Any, kept: Kept) -> Any:
    """One panel: a shaded cell with its count for each method and layer."""
    shares = [[count / max(1, size) for count, size in layers.values()] for layers in kept.values()]
    for r, layers in enumerate(kept.values()):
        for c, (count, _) in enumerate(layers.values()):
            axis.text(c, r, count, ha="center", va="center", color="white" if shares[r][c] > 0.6 else "#222")
    axis.set_yticks(range(len(kept)), list(kept))
    axis.tick_params(length=0)
    axis.grid(visible=False)
    axis.spines[:].set_visible(False)
    return axis.imshow(shares, cmap="Blues", vmin=0, vmax=1, aspect="auto")


def _style(salt: str) -> Any:
    """Settings of our figures; without pyplot, hence without touching the caller's."""
    from matplotlib import rc_context

    return rc_context(
        {
            "svg.fonttype": "none",  # text stays text: selectable, small, and the page's own font
            "svg.hashsalt": salt,  # same figure, same bytes; and no two figures of a page share an id
            "font.size": 9,
            "axes.titlesize": 10,
            "axes.titleweight": "bold",
            "axes.titlelocation": "left",
            "axes.spines.top": False,
            "axes.spines.right": False,
            "axes.edgecolor": "#888",
            "axes.grid": True,
            "grid.color": "#e6e6e6",
            "grid.linewidth": 0.8,
            "axes.axisbelow": True,
            "lines.linewidth": 1.6,
            "legend.frameon": False,
        }
    )


def _svg(canvas: Any, title: str) -> str:
    text = StringIO()
    canvas.savefig(text, format="svg", metadata=dict.fromkeys(("Date", "Creator", "Format", "Type")))
    svg = text.getvalue()
    return svg[svg.index("<svg") :].replace("<svg ", f'<svg role="img" aria-label="{escape(title, quote=True)}" ', 1)


_PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<title>$title</title>
<style>
:root { --ink: #1c2430; --soft: #5b6675; --line: #e3e7ec; --accent: #0072b2; }
* { box-sizing: border-box; }
body { margin: 0 auto; max-width: 78rem; padding: 2.5rem 1.5rem 4rem; color: var(--ink); background: #fff;
  font: 16px/1.55 system-ui, -apple-system, "Segoe UI", Roboto, "Helvetica Neue", Arial, sans-serif; }
h1 { font-size: 1.9rem; line-height: 1.2; margin: 0 0 .5rem; }
h2 { font-size: 1.2rem; margin: 2.75rem 0 .25rem; }
.lead { font-size: 1.05rem; max-width: 48rem; margin: 0 0 1.5rem; }
.note { color: var(--soft); max-width: 48rem; margin: 0 0 .9rem; font-size: .93rem; }
.facts { display: grid; grid-template-columns: repeat(auto-fit, minmax(9.5rem, 1fr)); gap: .75rem; margin: 1.25rem 0; }
.facts div { border: 1px solid var(--line); border-radius: .5rem; padding: .7rem .9rem; }
.facts b { display: block; font-size: 1.3rem; font-variant-numeric: tabular-nums; }
.facts span { color: var(--soft); font-size: .85rem; }
h3 { font-size: 1.02rem; margin: 1.5rem 0 .25rem; }
details { border: 1px solid var(--line); border-radius: .5rem; margin: .5rem 0; padding: 0 .9rem; }
details[open] { padding-bottom: .9rem; }
summary { cursor: pointer; padding: .5rem 0; font-weight: 600; overflow-wrap: anywhere; }
pre { background: #f6f8fa; border-radius: .5rem; padding: .7rem .9rem; overflow-x: auto; font-size: .84rem; }
.file { margin: .3rem 0 0; font-size: .8rem; }
.file a { color: var(--soft); }
figure { margin: 0; overflow-x: auto; }
figure svg { max-width: 100%; height: auto; }
.scroll { overflow: auto; max-height: 36rem; border: 1px solid var(--line); border-radius: .5rem; }
table { border-collapse: collapse; width: 100%; font-size: .84rem; font-variant-numeric: tabular-nums; }
th, td { padding: .34rem .5rem; text-align: right; white-space: nowrap; border-bottom: 1px solid var(--line); }
th.text, td.text { text-align: left; }
thead th { position: sticky; top: 0; background: #f6f8fa; }
th button { all: unset; cursor: pointer; font-weight: 600; }
th button:focus-visible { outline: 2px solid var(--accent); }
th[aria-sort] button { color: var(--accent); }
th[aria-sort=ascending] button::after { content: " ▲"; }
th[aria-sort=descending] button::after { content: " ▼"; }
tbody tr:hover { background: #f2f7fb; }
tbody tr:last-child td { border-bottom: 0; }
@media print { .scroll { max-height: none; overflow: visible; } }
</style>
</head>
<body>
<h1>$title</h1>
$lead
$facts
$body
<script>
for (const button of document.querySelectorAll("th button")) button.onclick = () => {
  const th = button.parentElement, table = th.closest("table"), column = th.cellIndex, body = table.tBodies[0];
  const up = th.getAttribute("aria-sort") !== "ascending";
  for (const other of table.querySelectorAll("th")) other.removeAttribute("aria-sort");
  th.setAttribute("aria-sort", up ? "ascending" : "descending");
  const key = row => row.cells[column].dataset.value;
  const order = (a, b) => a === "" || b === "" ? (a === "") - (b === "") :
    (up ? 1 : -1) * (isNaN(a) || isNaN(b) ? a.localeCompare(b) : a - b);
  body.append(...[...body.rows].sort((a, b) => order(key(a), key(b))));
};
</script>
</body>
</html>
""")
