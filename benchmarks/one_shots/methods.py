"""What a method is to the parts, and how its row comes about."""

from __future__ import annotations

import time
from argparse import Namespace
from collections.abc import Callable, Iterator, Mapping
from typing import Any, NamedTuple

from torch import nn

import prunesolve as ps

from .cases import CASES, Bench
from .rows import Row, code

Job = tuple[Row, Callable[[], Row]]


class Method(NamedTuple):
    """`call(bench, share removed)` -> network, and what else its row tells.

    `prepare(bench)` does what all shares have in common; its seconds are part of every row's. `needs` says what beside
    forward passes: "nothing", "gradients", "labels".
    """

    call: Callable[[Bench, float], tuple[nn.Module, Row]]
    needs: str
    kind: str = "ours"
    prepare: Callable[[Bench], Any] | None = None


def keep(share: float) -> float:
    """What stays where that share goes, without the last bits of a subtraction."""
    return round(1 - share, 6)


def pruned(**options: Any) -> Callable[[Bench, float], tuple[nn.Module, Row]]:
    """The one call of `ps.prune` with these options and the bench's seed, told with its own report."""

    def call(bench: Bench, share: float) -> tuple[nn.Module, Row]:
        out = ps.prune(bench.network, bench.data, keep=keep(share), seed=bench.seed, **_for(bench, options))
        return out.model, {"report": {name: out.report[name] for name in ("seconds", "steps") if name in out.report}}

    return call


def _for(bench: Bench, options: Mapping[str, Any]) -> Row:
    """Units go from the case's layers; of single weights all layers may lose."""
    return {**({} if "granularity" in options else {"layers": bench.case.layers}), **options}


def jobs(part: str, methods: Mapping[str, Method], shares: list[float], asked: Namespace) -> Iterator[Job]:
    """Every method of every case, seed and share that was asked for."""
    for case in asked.cases:
        for seed in asked.seeds:
            bench = Bench(case, seed, asked.calibration, asked.images)
            for share in asked.shares or shares:
                for name, method in methods.items():
                    if wanted(name, asked.only):
                        yield (
                            key(part, bench, name, share, method.kind),
                            lambda b=bench, m=method, s=share: row(b, m, s),
                        )


def wanted(name: str, only: list[str]) -> bool:
    """Whether one of the texts is part of the name."""
    return not only or any(text in name for text in only)


def key(part: str, bench: Bench, method: str, share: float, kind: str) -> Row:
    told = {"part": part, "case": bench.name, "method": method, "share": share, "seed": bench.seed}
    return told | {"calibration": bench.count, "images": bench.images, "code": code(kind)}


def row(bench: Bench, method: Method, share: float) -> Row:
    network, told = timed(bench, method, share)
    return told | bench.judged(network) | {"stays": bench.stays(network)}


def timed(bench: Bench, method: Method, share: float) -> tuple[nn.Module, Row]:
    """The network with the seconds of the call, on the wall and of the processor; reading data and weights is no part.

    On a machine that does other work the processor's seconds are those to compare.
    """
    # read before the clock starts
    _ = bench.network, bench.data
    before = _prepared(bench, method)
    clock = _Clock()
    network, told = method.call(bench, share)
    took = {what: before[what] + seconds for what, seconds in clock.read().items()}
    return network, {**took, "needs": method.needs, **told}


class _Clock:
    def __init__(self) -> None:
        self.began = time.perf_counter(), time.process_time()

    def read(self) -> dict[str, float]:
        return {"seconds": time.perf_counter() - self.began[0], "cpu": time.process_time() - self.began[1]}


_SPENT: dict[Any, dict[str, float]] = {}


def _prepared(bench: Bench, method: Method) -> dict[str, float]:
    """What the preparation took when it was first done."""
    if method.prepare is None:
        return {"seconds": 0.0, "cpu": 0.0}
    done = bench.name, bench.seed, bench.count, method.prepare
    clock = _Clock()
    method.prepare(bench)
    return _SPENT.setdefault(done, clock.read())


def dense(part: str, asked: Namespace) -> Iterator[Job]:
    """The networks as they are."""
    for case in asked.cases:
        bench = Bench(case, 0, asked.calibration, asked.images)
        if wanted("dense", asked.only):
            yield key(part, bench, "dense", 0.0, "peers"), lambda b=bench: b.judged(b.network)


__all__ = ["CASES", "Job", "Method", "dense", "jobs", "keep", "key", "pruned", "row", "timed", "wanted"]
