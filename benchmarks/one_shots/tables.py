"""What is on disk as tables: mean ± half the range over the calibration seeds."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np

from .cases import CASES
from .rows import Row

TITLES = {
    "structured": "whole units go",
    "unstructured": "single weights are zero",
    "two_four": "two of every four weights are zero",
    "criteria": "whole units, criterion (down) and repair (across)",
    "repairs": "single weights, mask (down) and repair (across)",
    "ice": "whole units, with labels and fine-tuning",
    "costs": "seconds and peak memory, each in a process of its own",
}
CROSSED = ("criteria", "repairs")
STAYS = ("units", "params", "macs", "weights")


def told(rows: Iterable[Row], asked: Namespace) -> Iterator[str]:
    """Every part and case that has rows."""
    wanted = [r for r in rows if r["case"] in asked.cases and r["seed"] in asked.seeds]
    wanted = [r for r in wanted if not asked.shares or r["share"] in (0.0, *asked.shares)]
    for part in [asked.of] if asked.of else TITLES:
        for case in CASES:
            here = [r for r in wanted if (r["part"], r["case"]) == (part, case)]
            for images, count in dict.fromkeys((r["images"], r["calibration"]) for r in here if "failed" not in r):
                group = [r for r in here if (r["images"], r["calibration"]) == (images, count)]
                yield from _heading(part, case, images, count, group)
                yield from (_crossed if part in CROSSED else _costs if part == "costs" else _by_share)(group)


def _heading(part: str, case: str, images: int, count: int, rows: list[Row]) -> Iterator[str]:
    threads = ", ".join(map(str, sorted({r["threads"] for r in rows if "threads" in r})))
    yield f"\n### {case}: {TITLES[part]}\n"
    yield f"{CASES[case].unit} on {images:,} test images, {count:,} calibration images, {threads} thread(s)"
    dense = [r["score"] for r in rows if r["method"] == "dense" and "score" in r]
    yield from [f"dense {dense[-1]:.2f}"] if dense else []
    yield ""


def spread(values: list[float], digits: int = 2) -> str:
    """Mean ± half the range; of fewer than three values how many they are."""
    if not values:
        return ""
    told = f"{np.mean(values):.{digits}f}"
    if len(values) > 1:
        told += f" ± {(max(values) - min(values)) / 2:.{digits}f}"
    return told if len(values) > 2 else f"{told} ({len(values)})"


def _by_share(rows: list[Row]) -> Iterator[str]:
    """Scores, then what stays of the network, then what failed."""
    done = [r for r in _latest(rows) if r["method"] != "dense"]
    scored = [r for r in done if "score" in r]
    shares = sorted({r["share"] for r in scored})
    if scored:
        heads = [f"{share:.4g}".rstrip() for share in (100 * s for s in shares)]
        yield "| method | needs | " + " | ".join(f"{head} %" for head in heads) + " | seconds | of the processor |"
        yield "|---|---|" + "---|" * (len(shares) + 2)
        for method, own in _methods(scored):
            cells = [spread([r["score"] for r in own if r["share"] == share]) for share in shares]
            cells += [_mean([r[what] for r in own if what in r]) for what in ("seconds", "cpu")]
            yield "| " + " | ".join([method, own[0]["needs"], *cells]) + " |"
        yield "\nWhat stays, in % of units / parameters / MACs / weights that are not zero\n"
        yield "| method | " + " | ".join(f"{head} %" for head in heads) + " |"
        yield "|---|" + "---|" * len(shares)
        for method, own in _methods(scored):
            cells = [_stays([r for r in own if r["share"] == share]) for share in shares]
            yield "| " + " | ".join([method, *cells]) + " |"
    yield from _failures(done)


def _mean(values: list[float]) -> str:
    return f"{np.mean(values):.1f}" if values else ""


def _stays(rows: list[Row]) -> str:
    if not rows:
        return ""
    return " / ".join(f"{100 * np.mean([r['stays'][what] for r in rows]):.1f}" for what in STAYS)


def _crossed(rows: list[Row]) -> Iterator[str]:
    """One table a share."""
    done = _latest(rows)
    scored = [r for r in done if "score" in r]
    repairs = list(dict.fromkeys(r["repair"] for r in scored))
    for share in sorted({r["share"] for r in scored}):
        here = [r for r in scored if r["share"] == share]
        yield f"{100 * share:.4g} % gone, {len({r['seed'] for r in here})} seed(s)\n"
        yield "| | " + " | ".join(repairs) + " |"
        yield "|---|" + "---|" * len(repairs)
        for criterion in dict.fromkeys(r["criterion"] for r in here):
            own = [r for r in here if r["criterion"] == criterion]
            cells = [spread([r["score"] for r in own if r["repair"] == repair], 1) for repair in repairs]
            yield "| " + " | ".join([criterion, *cells]) + " |"
        yield ""
    yield from _failures(done)


def _costs(rows: list[Row]) -> Iterator[str]:
    done = _latest(rows)
    told = [r for r in done if "peak_mib" in r]
    yield "| part: method | share | needs | seconds | of the processor | MiB at the start | peak MiB |"
    yield "|---|---|---|---|---|---|---|"
    for method, own in _methods(told):
        figures = {"seconds": 1, "cpu": 1, "before_mib": 0, "peak_mib": 0}
        cells = [spread([r[what] for r in own if what in r], digits) for what, digits in figures.items()]
        yield "| " + " | ".join([method, f"{100 * own[0]['share']:.4g} %", own[0]["needs"], *cells]) + " |"
    yield from _failures(done)


def _latest(rows: list[Row]) -> list[Row]:
    """Rows of the code that a method ran last at a share: figures of two versions are not averaged."""
    last = {(r["method"], r["share"]): r["code"] for r in rows if "failed" not in r}
    return [r for r in rows if last.get((r["method"], r["share"]), r["code"]) == r["code"]]


def _methods(rows: list[Row]) -> Iterator[tuple[str, list[Row]]]:
    for method in dict.fromkeys(r["method"] for r in rows):
        yield method, [r for r in rows if r["method"] == method]


def _failures(rows: list[Row]) -> Iterator[str]:
    failed: dict[tuple[str, str], list[Any]] = {}
    for r in rows:
        if "failed" in r:
            failed.setdefault((r["method"], r["failed"]), []).append(f"{100 * r['share']:.4g} %, seed {r['seed']}")
    if failed:
        yield "\nFailed:\n"
        yield from (f"- {method} ({'; '.join(where)}): {why}" for (method, why), where in failed.items())
