"""Our solvers and other people's on the same instances under the same clock.

    python benchmarks/solvers.py                    equal time: gaps, time to target, anytime curves, profiles
    python benchmarks/solvers.py --ratio 20         ours at T against dwave's annealing and tabu at 20 T
    python benchmarks/solvers.py --quick            either of them in under a minute

T is 0.05 s up to n = 256, 0.2 s up to n = 1024 and 3 s beyond. Everybody's clock counts building the model; loading
and compiling our kernels and calibrating the peers are not counted. A sampler's reads are repaired to the exact
cardinality and polished by our 1-swap descent for free, and of three penalties the best for the instance is
reported. Beyond --tune-up-to variables a pilot of a tenth of the time picks the penalty.
Every run goes to --out as runs.csv (and runs.parquet), every improvement of ours to traces.csv.
"""

from __future__ import annotations

import argparse
import csv
import math
import sys
import time
from collections import defaultdict
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, fields, replace
from pathlib import Path
from statistics import median

import instances
import numpy as np
import peers
from threadpoolctl import threadpool_limits

from prunesolve import solvers
from prunesolve.problems import BinaryQuadratic, generators

OUT = Path(__file__).resolve().parent / "out"
OURS = ("auto", "swap-annealing", "swap-tabu", "block-fronts", "exact")
SIZES = {64: 0.05, 256: 0.05, 1024: 0.2, 4096: 3.0}  # up to n: T in seconds
TIMES = (0.25, 1.0, 4.0)  # of T
PROOF_UP_TO = 64  # units of the largest instance for the solvers that prove
KINDS = ("dense", "blocks", "low-rank", "diversity")
LARGE = 1024  # beyond, one instance a group and one seed: a run is a minute
PILOT_SHARE, PILOT_SEED = 0.1, 1000
TARGETS = {"0.1 %": 1e-3, "best": 1e-6}  # relative distance from the best known
TIE = 1e-9


@dataclass(frozen=True)
class Instance:
    """A problem to run on; `group` is its source and size class."""

    name: str
    group: str
    problem: BinaryQuadratic
    published: float | None = None

    @property
    def T(self) -> float:
        return SIZES[size_class(self.problem.n)]


@dataclass(frozen=True)
class Run:
    """One call: a row of runs.csv."""

    instance: str
    group: str
    n: int
    k: int
    solver: str
    penalty: float | None
    seed: int
    time_limit: float
    seconds: float
    objective: float
    feasible_before_repair: float  # share of the reads
    proved: bool = False
    pilot: bool = False
    threads: int = 1
    best_known: float = math.nan
    gap: float = math.nan  # relative
    trace: tuple[tuple[float, float], ...] = field(default=(), repr=False)  # seconds, objective


# --- instances -------------------------------------------------------------------------------------------------------


def size_class(n: int) -> int:
    return next((size for size in SIZES if n <= size), max(SIZES))


def chosen(options: argparse.Namespace) -> list[Instance]:
    """Real ones first; without --name, --per-group of each group spread over it, one of the large ones."""
    groups: dict[str, list[Instance]] = defaultdict(list)
    for source in options.source:
        for instance in SOURCES[source](options):
            groups[instance.group].append(instance)
    return [instance for group in groups.values() for instance in spread(group, options)]


def spread(group: list[Instance], options: argparse.Namespace) -> list[Instance]:
    count = options.per_group if group[0].problem.n <= LARGE else 1
    if options.name or len(group) <= count:
        return group
    return [group[i] for i in np.linspace(0, len(group) - 1, count).astype(int)]


def real(options: argparse.Namespace) -> Iterator[Instance]:
    """The instances of --real that have a cardinality; those of a budget no penalty on the count fits."""
    for path in sorted(options.real.glob("*.npz")):
        if not wanted(path.stem, options):
            continue
        problem = BinaryQuadratic.load(path)
        if problem.n > options.largest or not 0 < (problem.k or 0) < problem.n:
            continue
        yield Instance(path.stem, f"real, n <= {size_class(problem.n)}", problem)


def synthetic(options: argparse.Namespace) -> Iterator[Instance]:
    # what can be proved is no matter of a head start
    for n in (size for size in SIZES if size <= options.largest and not (options.ratio and size <= PROOF_UP_TO)):
        for kind in KINDS if n <= LARGE else KINDS[:1]:
            if wanted(f"{kind}-n{n}", options):
                yield Instance(f"{kind}-n{n}", f"synthetic, n <= {n}", generated(n, kind))


def generated(n: int, kind: str) -> BinaryQuadratic:
    if kind == "diversity":
        return generators.max_diversity(n, n // 5, seed=1)
    return generators.pruning(n, layers=4 if n <= 64 else 8, rank=max(8, n // 16), coupling=kind, seed=1)


def mdplib(options: argparse.Namespace) -> Iterator[Instance]:
    """The public maximum-diversity instances beside the checkout, where they are."""
    if not instances.FOLDER.is_dir():
        return
    for public in instances.instances(["mdp"], options.name):
        if public.problem.n <= options.largest:
            best = None if public.best is None else public.sign * public.best
            yield Instance(public.name, f"MDPLIB, n <= {size_class(public.problem.n)}", public.problem, best)


def wanted(name: str, options: argparse.Namespace) -> bool:
    return not options.name or any(part in name for part in options.name)


SOURCES = {"real": real, "synthetic": synthetic, "mdplib": mdplib}


# --- runs ------------------------------------------------------------------------------------------------------------


def our_run(instance: Instance, name: str, seconds: float, seed: int) -> Run:
    solver = solvers.get(name)
    # a problem of its own for every run: what a search lays out for a problem is kept as long as that lives
    problem = instance.problem.replace()
    began = time.perf_counter()
    result = solver.solve(problem, seed=seed, time_limit=seconds)
    took = time.perf_counter() - began - result.details["compile_seconds"]
    trace = tuple((row.seconds, row.objective) for row in result.trace if row.objective is not None)
    return Run(
        **facts(instance, name, seed, seconds),
        penalty=None,
        seconds=took,
        objective=result.objective if result.feasible else math.inf,
        feasible_before_repair=float(result.feasible),
        proved=result.status is solvers.Status.OPTIMAL,
        trace=trace,
    )


def their_run(instance: Instance, peer: peers.Peer, seconds: float, seed: int, penalty: float | None) -> Run:
    problem = instance.problem
    began = time.perf_counter()
    found = peer(problem, seconds, seed, penalty)
    took = time.perf_counter() - began
    values = [problem.value(peers.polished(problem, peers.repaired(problem, x))) for x in found]
    return Run(
        **facts(instance, peer.name, seed, seconds),
        penalty=penalty,
        seconds=took,
        objective=min(values, default=math.inf),
        feasible_before_repair=float(np.mean([problem.is_feasible(x) for x in found])) if found else 0.0,
        proved=peer.proves and took < 0.95 * seconds,
    )


def facts(instance: Instance, solver: str, seed: int, seconds: float) -> dict[str, object]:
    problem = instance.problem
    named = {"instance": instance.name, "group": instance.group, "n": problem.n, "k": problem.k}
    return named | {"solver": solver, "seed": seed, "time_limit": seconds}


def peer_runs(
    instance: Instance, peer: peers.Peer, seconds: float, seeds: Iterable[int], options: argparse.Namespace
) -> Iterator[Run]:
    """All penalties where that is cheap, else the one that does best in a short pilot, whose runs are told too."""
    penalties = peer.penalties
    try:
        if len(penalties) > 1 and instance.problem.n > options.tune_up_to:
            pilots = []
            for penalty in penalties:
                ready = peer.calibrated(instance.problem, PILOT_SHARE * seconds, penalty)
                run = their_run(instance, ready, PILOT_SHARE * seconds, PILOT_SEED, penalty)
                pilots.append(replace(run, pilot=True))
            yield from pilots
            penalties = (min(pilots, key=lambda run: run.objective).penalty,)
        for penalty in penalties:
            ready = peer.calibrated(instance.problem, seconds, penalty)
            for seed in seeds:
                yield their_run(instance, ready, seconds, seed, penalty)
    except peers.Refused as reason:
        print(f"  {peer.name} does not take {instance.name}: {reason}", file=sys.stderr)


def judged(instance: Instance, runs: list[Run]) -> list[Run]:
    """With the best value known from any run, or published, and the relative gap to it."""
    best = min([run.objective for run in runs], default=math.inf)
    # the published values of GKD-c are rounded to single precision
    if instance.published is not None and best > instance.published + 1e-6 * abs(instance.published):
        best = instance.published
    return [replace(run, best_known=best, gap=(run.objective - best) / max(1e-12, abs(best))) for run in runs]


def equal_time(instance: Instance, options: argparse.Namespace) -> Iterator[Run]:
    """Everybody at several multiples of T; the solvers that prove on small instances alone, for seconds."""
    seeds = range(options.seeds if instance.problem.n <= LARGE else 1)
    small = instance.problem.n <= PROOF_UP_TO
    times = [share * instance.T for share in options.times]
    for name in our_solvers(instance, options):
        solvers.get(name).solve(instance.problem, time_limit=0.01)
        for seconds in [options.proof_time] if name == "exact" else times:
            for seed in seeds if name != "exact" else [0]:
                yield our_run(instance, name, seconds, seed)
    for peer in their_solvers(options):
        if not peer.proves or small:
            for seconds in [options.proof_time] if peer.proves else times:
                yield from peer_runs(instance, peer, seconds, [0] if peer.proves else seeds, options)


def head_start(instance: Instance, options: argparse.Namespace) -> Iterator[Run]:
    """Ours at T, dwave's annealing and tabu at --ratio times T."""
    seeds = range(options.seeds if instance.problem.n <= LARGE else 1)
    for name in our_solvers(instance, options):
        solvers.get(name).solve(instance.problem, time_limit=0.01)
        for seed in seeds:
            yield our_run(instance, name, instance.T, seed)
    for peer in their_solvers(options):
        yield from peer_runs(instance, peer, options.ratio * instance.T, seeds, options)


def our_solvers(instance: Instance, options: argparse.Namespace) -> list[str]:
    """Those asked for that the library has and that take the instance; `exact` where it has a chance."""
    takes = [name for name in OURS if name in options.solver and name in solvers.available(instance.problem)]
    return [n for n in takes if n != "exact" or (instance.problem.n <= PROOF_UP_TO and not options.ratio)]


def their_solvers(options: argparse.Namespace) -> list[peers.Peer]:
    rivals = ("dwave-sa", "dwave-tabu") if options.ratio else tuple(peers.installed())
    return [peer for name, peer in peers.installed().items() if name in options.solver and name in rivals]


# --- tables ----------------------------------------------------------------------------------------------------------


def tuned(runs: list[Run]) -> list[Run]:
    """Without pilots, and for each instance, solver and time limit only the penalty of lowest median objective."""
    by_penalty: dict[tuple[object, ...], dict[float | None, list[Run]]] = defaultdict(lambda: defaultdict(list))
    for run in runs:
        if not run.pilot:
            by_penalty[run.instance, run.solver, run.time_limit][run.penalty].append(run)
    kept = [min(found.values(), key=lambda some: median(r.objective for r in some)) for found in by_penalty.values()]
    return [run for some in kept for run in some]


def progress(runs: list[Run]) -> dict[tuple[str, str], dict[tuple[str, int], list[tuple[float, float]]]]:
    """{(group, solver): {(instance, seed): (seconds, gap) as it fell}}: traces of ours, calls of several lengths."""
    found: dict[tuple[str, str], dict[tuple[str, int], list[tuple[float, float]]]]
    found = defaultdict(lambda: defaultdict(list))
    for run in tuned(runs):
        scale = max(1e-12, abs(run.best_known))
        reached = [(t, (value - run.best_known) / scale) for t, value in run.trace] or [(run.seconds, run.gap)]
        found[run.group, run.solver][run.instance, run.seed] += reached
    return {key: {one: sorted(steps) for one, steps in found[key].items()} for key in found}


def time_to(steps: list[tuple[float, float]], target: float) -> float:
    return min((t for t, gap in steps if gap <= target), default=math.inf)


def equal_table(runs: list[Run]) -> None:
    """Medians over instances and seeds, group by group, at T and at the longest time."""
    falls = progress(runs)
    for group in dict.fromkeys(run.group for run in runs):
        members = [run for run in tuned(runs) if run.group == group]
        limits = sorted({run.time_limit for run in members if run.solver not in proving()})
        count = len({run.instance for run in members})
        print(f"\n{group}: {count} instances; gaps in % to the best known, times in s")
        heads = [f"gap {t:g} s" for t in limits] + [f"to {name}" for name in TARGETS]
        print(f"{'solver':<16}" + "".join(f"{h:>12}" for h in [*heads, "reached", "feasible", "proved"]))
        for solver in dict.fromkeys(run.solver for run in members):
            mine = [run for run in members if run.solver == solver]
            gaps = [shown([r.gap for r in mine if r.time_limit == t], 100) for t in limits]
            steps = list(falls[group, solver].values())
            times = [shown([time_to(s, target) for s in steps]) for target in TARGETS.values()]
            reached = sum(time_to(s, TARGETS["best"]) < math.inf for s in steps)
            proved = {r.instance for r in mine if r.proved}
            told = [
                *gaps,
                *times,
                f"{reached}/{len(steps)}",
                f"{np.mean([r.feasible_before_repair for r in mine]):.0%}",
            ]
            told.append(f"{len(proved)}/{count}" if solver in proving() else "")
            print(f"{solver:<16}" + "".join(f"{t:>12}" for t in told))


def shown(values: list[float], factor: float = 1.0) -> str:
    """The median; a dash where there is none or half of them were never reached."""
    middle = median(values) if values else math.inf
    return f"{factor * middle:.4g}" if math.isfinite(middle) else "-"


def proving() -> set[str]:
    return {"exact", *(peer.name for peer in peers.ALL if peer.proves)}


def ratio_table(runs: list[Run], ratio: float) -> None:
    """Instance by instance and seed by seed, each of ours against the best of the peers and their penalties."""
    rivals = {peer.name for peer in peers.ALL}
    outcomes: dict[str, list[str]] = defaultdict(list)
    names = [name for name in OURS if any(run.solver == name for run in runs)]
    print(
        f"\nours at T against the best of the peers at {ratio:g} T, repaired and polished; gaps in % to the best known"
    )
    print(f"{'instance':<28}{'n':>6}{'T':>6}{'seed':>5}{'best peer':>12}{'its gap':>10}", end="")
    print("".join(f"{name:>22}" for name in names))
    for instance, seed in dict.fromkeys((run.instance, run.seed) for run in runs if not run.pilot):
        here = [run for run in runs if (run.instance, run.seed) == (instance, seed) and not run.pilot]
        theirs = [run for run in here if run.solver in rivals]
        if not theirs:
            continue
        peer = min(theirs, key=lambda run: run.objective)
        told = []
        for name in names:
            mine = next((run for run in here if run.solver == name), None)
            if mine is None:
                told.append("")
                continue
            outcomes[name].append(outcome(mine.objective, peer.objective))
            told.append(f"{100 * mine.gap:.5f} {outcomes[name][-1]}")
        head = (
            f"{instance:<28}{peer.n:>6}{peer.time_limit / ratio:>6.3g}{seed:>5}{peer.solver:>12}{100 * peer.gap:>10.5f}"
        )
        print(head + "".join(f"{t:>22}" for t in told))
    for name, found in outcomes.items():
        counts = ", ".join(f"{found.count(word)} {word}" for word in ("win", "tie", "loss"))
        print(f"{name}: {counts} of {len(found)}")


def outcome(ours: float, theirs: float) -> str:
    if abs(ours - theirs) <= TIE * max(1e-12, abs(theirs)):
        return "tie"
    return "win" if ours < theirs else "loss"


# --- files -----------------------------------------------------------------------------------------------------------


def save(runs: list[Run], folder: Path, name: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    columns = [f.name for f in fields(Run) if f.name != "trace"]
    rows = [{column: getattr(run, column) for column in columns} for run in runs]
    with (folder / f"{name}.csv").open("w", newline="") as file:
        table = csv.DictWriter(file, columns)
        table.writeheader()
        table.writerows(rows)
    with (folder / f"{name}-traces.csv").open("w", newline="") as file:
        lines = csv.writer(file)
        lines.writerow(["instance", "solver", "seed", "time_limit", "seconds", "objective"])
        for run in runs:
            lines.writerows([run.instance, run.solver, run.seed, run.time_limit, *step] for step in run.trace)
    try:
        import pyarrow
        import pyarrow.parquet
    except ImportError:
        return
    pyarrow.parquet.write_table(pyarrow.Table.from_pylist(rows), folder / f"{name}.parquet")


# --- command line ----------------------------------------------------------------------------------------------------


def main() -> None:
    options = asked()
    found = chosen(options)
    if not found:
        sys.exit("no instances: expected some of --source, --name, --largest to match")
    name = f"ratio{options.ratio:g}" if options.ratio else "runs"
    study = head_start if options.ratio else equal_time
    # every peer, ours too, on one core
    with threadpool_limits(1):
        runs: list[Run] = []
        for instance in found:
            began = time.perf_counter()
            runs += judged(instance, list(study(instance, options)))
            print(f"{instance.name}: {time.perf_counter() - began:.0f} s", file=sys.stderr, flush=True)
            save(runs, options.out, name)
    if options.ratio:
        ratio_table(runs, options.ratio)
    else:
        equal_table(runs)
        from solver_plots import anytime, profiles

        anytime(progress(runs), options.out / "anytime.png")
        profiles(progress(runs), TARGETS["0.1 %"], options.out / "profiles.png")
    print(f"\nruns, traces and plots: {options.out}")


def shares(text: str) -> tuple[float, ...]:
    return tuple(float(word) for word in instances.words(text))


def asked() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    everyone = ",".join([*OURS, *peers.installed()])
    parser.add_argument("--ratio", type=float, help="give dwave's annealing and tabu this multiple of our time")
    parser.add_argument("--quick", action="store_true", help="small instances, one seed: under a minute")
    parser.add_argument("--source", type=instances.words, default=list(SOURCES), help=f"of {', '.join(SOURCES)}")
    parser.add_argument("--real", type=Path, default=OUT / "real", help="folder of instances from real networks")
    parser.add_argument("--name", type=instances.words, default=[], help="parts of instance names; all where left out")
    parser.add_argument("--largest", type=int, default=max(SIZES), help="units of the largest instance")
    parser.add_argument("--per-group", type=int, default=3, help="instances a group, where none is named")
    parser.add_argument("--seeds", type=int, default=3, help="seeds; one beyond 1024 units")
    parser.add_argument("--solver", type=instances.words, default=instances.words(everyone), help=f"of {everyone}")
    parser.add_argument(
        "--tune-up-to", type=int, default=256, help="units up to which all penalties run at full length"
    )
    parser.add_argument("--times", type=shares, default=TIMES, help="at equal time: multiples of T, comma-separated")
    parser.add_argument("--proof-time", type=float, default=10.0, help="seconds for those that prove, if units are few")
    parser.add_argument("--out", type=Path, default=OUT)
    options = parser.parse_args()
    for asked_for, known in ((options.solver, instances.words(everyone)), (options.source, list(SOURCES))):
        if unknown := set(asked_for) - set(known):
            parser.error(f"expected some of {', '.join(known)}, got {', '.join(sorted(unknown))}")
    if options.quick:
        options.largest, options.per_group, options.seeds, options.tune_up_to = 512, 1, 1, 0
        options.times, options.proof_time = (0.25, 1.0), 1.0
    return options


if __name__ == "__main__":
    main()
