"""The command line: data on stdout, progress and notices on stderr.

Exit codes: 0 ok, 1 no feasible solution or a wrong claim, 2 bad input (one line, no traceback), 130 Ctrl-C, the
incumbent printed.
`solve` is kept light: neither torch nor rich nor dimod is imported unless the instance needs it.
"""

from __future__ import annotations

import ast
import atexit
import enum
import gc
import importlib
import importlib.util
import json
import logging
import os
import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Annotated, Any

import typer

from prunesolve._startup import NoBlasForNumba, plain_arguments
from prunesolve.instances import LIBRARY, existing, existing_instance, keeping, read_instance
from prunesolve.problems import InvalidProblem, SolverFailed, UnsupportedProblem, unknown

app = typer.Typer(
    name="prunesolve",
    help="Decide which parts of a trained network to keep, as a combinatorial-optimisation problem.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INFEASIBLE, REFUTED, BAD_INPUT, INTERRUPTED = 1, 1, 2, 130
PLAN_ROWS = 20


class Task(enum.StrEnum):
    """What the demo prunes."""

    classify = "classify"
    denoise = "denoise"


class Refit(enum.StrEnum):
    """How the weights that stay are adapted after the removal."""

    none = "none"
    least_squares = "least-squares"
    reconstruct = "reconstruct"


class Form(enum.StrEnum):
    """In whose form results are written."""

    qoblib = "qoblib"
    sampleset = "sampleset"
    results = "results"


class Decide(enum.StrEnum):
    """What a point of a front says."""

    units = "units"
    levels = "levels"
    both = "both"


Model = Annotated[str, typer.Argument(metavar="MODULE:FACTORY", help="A callable that returns the trained model.")]
Data = Annotated[Path, typer.Option("--data", help="`.npz` with the keys inputs and targets.")]
Keep = Annotated[str | None, typer.Option("--keep", help="Units kept: 0.5 is a fraction, 64 a count.")]
Params = Annotated[str | None, typer.Option("--params", help="Parameters kept: 0.5 is a fraction, 10000 a count.")]
Macs = Annotated[str | None, typer.Option("--macs", help="Multiply-adds kept: 0.5 is a fraction, 10000 a count.")]
Layers = Annotated[str | None, typer.Option("--layers", help="Comma-separated layers whose outputs may go.")]
FormulationName = Annotated[str, typer.Option("--formulation", help="See `prunesolve formulations`.")]
SolverName = Annotated[str, typer.Option("--solver", help="See `prunesolve solvers`.")]
Seed = Annotated[int, typer.Option("--seed", help="Seed of the run.")]
TimeLimit = Annotated[float | None, typer.Option("--time-limit", help="Seconds.")]
FileFormat = Annotated[str, typer.Option("--format", help="auto, mdplib, beasley, qkp or coo.")]
Device = Annotated[str | None, typer.Option("--device", help="torch device, such as cuda.")]


@app.command()
def demo(
    task: Annotated[Task, typer.Option("--task", help="Digits classifier or photograph denoiser.")] = Task.classify,
    out: Annotated[Path, typer.Option("--out", help="Folder for report.html and table.csv.")] = Path("demo-out"),
    seed: Seed = 0,
) -> None:
    """Prune a small trained network on embedded real data: table, report.html and plots."""
    from rich.console import Console

    from prunesolve.demo import render, run_demo

    result = run_demo(task.value, out, seed=seed)
    Console().print(render(result))
    say(
        f"each removed network equals its masked one: largest difference {result.difference:.1e} over "
        f"{len(result.rows)} selections\n{result.seconds:.0f} s; {result.report}, {result.table}"
    )


@app.command()
def prune(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks, smaller model and report.")],
    keep: Keep = None,
    params: Params = None,
    macs: Macs = None,
    layers: Layers = None,
    granularity: Annotated[
        str, typer.Option("--granularity", help="What goes: channel, weight (zeros), or n:m as 2:4, without --keep.")
    ] = "channel",
    allocation: Annotated[
        str, typer.Option("--allocation", help="Of weight: auto, uniform, erk, lamp, global or level-choice.")
    ] = "auto",
    formulation: FormulationName = "reconstruction",
    solver: SolverName = "auto",
    refit: Annotated[
        Refit, typer.Option("--refit", help="Adapt the weights that stay; reconstruct adds gradient steps, no labels.")
    ] = Refit.least_squares,
    repair: Annotated[
        str | None,
        typer.Option("--repair", help="Afterwards, comma-separated: bn, layer-variance, repair, asr, bias, damped."),
    ] = None,
    device: Device = None,
    seed: Seed = 0,
    time_limit: TimeLimit = None,
    objectives: Annotated[
        str, typer.Option("--objectives", help="Of multi-objective: the error, costs.")
    ] = "loss,params",
    decide: Annotated[Decide, typer.Option("--decide", help="Of multi-objective: what a point says.")] = Decide.units,
    evaluations: Annotated[int, typer.Option("--evaluations", help="Of multi-objective: most evaluations.")] = 1000,
) -> None:
    """Prune a trained model: masks.safetensors, the smaller model and report.json in one folder.

    With --formulation multi-objective the whole front goes into the folder too, as front.json, plots and report.html;
    the model is its point of least loss within --keep, --params and --macs, without them the knee.

    With --granularity weight, --keep of all weights stay, with 2:4 two of every four; the model keeps its shapes.
    """
    import prunesolve as ps

    check_folder(out)
    asked: dict[str, Any] = {
        "keep": amount("--keep", keep),
        "params": amount("--params", params),
        "macs": amount("--macs", macs),
    }
    how: dict[str, Any] = {
        "layers": split(layers),
        "solver": solver,
        "refit": {"none": False, "least-squares": True}.get(refit.value, refit.value),
        "device": device,
        "time_limit": time_limit,
        "seed": seed,
    }
    repairs = split(repair)
    if formulation == "multi-objective" and granularity == "channel":
        from prunesolve.formulations.budgets import check_asked

        given = {name: value for name, value in asked.items() if value is not None}
        if given:
            check_asked(given)
        trade = ps.trade_off(
            load_model(model),
            load_data(data),
            objectives=split(objectives) or (),
            decide=decide.value,
            evaluations=evaluations,
            # evaluations refit by least squares at most: blocks are rebuilt in the point that is picked
            **how | {"refit": bool(how["refit"])},
        )
        trade.save(out)
        say(str(trade))
        found: Any = trade.pick(**given, refit=how["refit"], repair=repairs)
    else:
        how |= {"formulation": formulation, "granularity": granularity, "allocation": allocation}
        found = ps.prune(load_model(model), load_data(data), **asked, repair=repairs, **how)
    found.save(out)
    say(str(found.report))
    # single weights are solved layer by layer: who gets here has a feasible answer for each
    if granularity == "channel":
        finish(found.result)


@app.command()
def measure(
    model: Model,
    data: Data,
    out: Annotated[Path, typer.Option("--out", "-o", help="Statistics file to write, `.npz`.")],
    layers: Layers = None,
    device: Device = None,
) -> None:
    """Measure what each unit of a model is worth and costs."""
    import prunesolve as ps

    check_file(out, ".npz")
    stats = ps.measure(load_model(model), load_data(data), layers=split(layers), device=device)
    stats.save(out)
    say(f"{out}: {stats.n} units in {len(stats.groups)} groups")
    for group, reason in stats.meta.get("excluded", {}).items():
        notice(f"left out: {group}: {reason}")


@app.command()
def encode(
    statistics: Annotated[Path, typer.Argument(metavar="STATS.npz", help="What `measure` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Instance file to write, `.npz`.")],
    formulation: FormulationName = "reconstruction",
    keep: Keep = None,
    params: Params = None,
    macs: Macs = None,
    option: Annotated[list[str] | None, typer.Option("--option", help="Option of the formulation, k=v.")] = None,
) -> None:
    """Turn statistics and a budget into a problem instance."""
    from prunesolve import formulations
    from prunesolve.problems import Statistics

    check_file(out, ".npz")
    chosen = formulations.of_statistics(formulation, **options(option))
    problem = chosen.encode(
        Statistics.load(existing(statistics)),
        keep=amount("--keep", keep),
        params=amount("--params", params),
        macs=amount("--macs", macs),
    )
    problem.save(out)
    say(f"{out}: {describe(problem)}")


@app.command()
def solve(
    instance: Annotated[
        str, typer.Argument(metavar="INSTANCE[:k]", help="Instance file, :k its k-th instance; or library:NAME.")
    ],
    solver: SolverName = "auto",
    seed: Seed = 0,
    time_limit: TimeLimit = None,
    evaluation_limit: Annotated[int | None, typer.Option("--evaluation-limit", help="Most evaluations.")] = None,
    keep: Keep = None,
    option: Annotated[list[str] | None, typer.Option("--option", help="Option of the solver, k=v.")] = None,
    start: Annotated[Path | None, typer.Option("--start", help="Result file to begin with.")] = None,
    bound: Annotated[bool, typer.Option("--bound", help="Also prove a lower bound.")] = False,
    threads: Annotated[int | None, typer.Option("--threads", help="Threads, for solvers that use several.")] = None,
    file_format: FileFormat = "auto",
    out: Annotated[Path | None, typer.Option("--out", help="Result file to write, with the trace.")] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Solve an instance file and print the best selection found."""
    from prunesolve import solvers
    from prunesolve.pipeline import told_of

    if out is not None:
        check_file(out, ".json")
    searcher = solvers.get(solver, **options(option), **threads_of(solver, threads))
    problem = keeping(read_instance(instance, file_format), amount("--keep", keep))
    beginning = None if start is None else read_solution(start)
    result = searcher.solve(
        problem, seed=seed, time_limit=time_limit, evaluation_limit=evaluation_limit, start=beginning, bound=bound
    )
    told = told_of(instance, problem, result)
    if out is not None:
        write_json(out, told | {"trace": [list(row) for row in result.trace]})
    say(json.dumps(told, allow_nan=False) if as_json else summary(told))
    finish(result)


@app.command()
def apply(
    model: Model,
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="What `solve --out` wrote.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for masks and smaller model.")],
    index: Annotated[int | None, typer.Option("--index", help="Point of a front; default its knee.")] = None,
) -> None:
    """Apply a result to the model: masks.safetensors and the smaller model, which loads without prunesolve."""
    from prunesolve.pipeline import apply_result

    check_folder(out)
    told = read_object(result)
    for name, (after, before) in apply_result(load_model(model), told, out, index).items():
        say(f"{name:<12} {after:,} of {before:,}  ({100 * after / max(before, 1):.2f} %)")
    say(f"{out}: masks.safetensors and the smaller model")


@app.command("solvers")
def list_solvers() -> None:
    """List the solvers."""
    from prunesolve import solvers

    for name, sentence in solvers.summaries().items():
        say(f"{name:<22}{sentence}")


@app.command("formulations")
def list_formulations() -> None:
    """List the formulations."""
    from prunesolve import formulations

    for name, sentence in formulations.summaries().items():
        say(f"{name:<22}{sentence}")


@app.command("instances")
def list_instances() -> None:
    """List the instances that come with prunesolve; `solve library:NAME` takes one."""
    from prunesolve.problems import library

    for name in library.names():
        facts = library.about(name)
        of = f"{facts['n']} units" if facts["k"] is None else f"{facts['k']} of {facts['n']}"
        say(f"{name:<42}{of:<12}{facts['kind'].partition(';')[0]:<9}{'proved' if facts['proved'] else 'open'}")


@app.command()
def info(
    file: Annotated[
        str, typer.Argument(metavar="FILE[:k]", help="Any file prunesolve reads or writes, or library:NAME.")
    ],
) -> None:
    """Say what a file or a library instance holds."""
    if file.startswith(LIBRARY):
        say(describe(read_instance(file)) + "\n" + known_of(file.removeprefix(LIBRARY)))
        return
    from prunesolve.pipeline import load
    from prunesolve.problems.readers import SUFFIXES, instances_in, split_index

    path, index = split_index(file)
    known = existing_instance(path).suffix.lower() in (*SUFFIXES, ".json", ".safetensors", ".pt2")
    several = 1 if known or index is not None else instances_in(path)
    if several > 1:
        say(f"{path}: {several} instances; name one as {path}:1 to {path}:{several}")
    else:
        say(describe(load(path, index=index)))


@app.command()
def convert(
    source: Annotated[str, typer.Argument(metavar="IN[:k]", help="Instance file to read.")],
    target: Annotated[Path, typer.Argument(metavar="OUT", help="Instance file to write; the suffix says how.")],
    file_format: FileFormat = "auto",
) -> None:
    """Convert an instance from one file format to another."""
    from prunesolve.problems.readers import write

    problem = read_instance(source, file_format)
    write(problem, target)
    say(f"{target}: {describe(problem)}")


@app.command()
def check(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE[:k]", help="Instance file or library:NAME.")],
    result: Annotated[Path, typer.Argument(metavar="RESULT.json", help="A claimed solution.")],
    file_format: FileFormat = "auto",
) -> None:
    """Verify a claimed solution: recompute its objective and its constraints, compare with what is known."""
    from prunesolve.claims import examine

    problem = read_instance(instance, file_format)
    read_result(result)
    try:
        verdict = examine(problem, read_object(result))
    except InvalidProblem as error:
        raise InvalidProblem(f"{result}, for {instance}: {error}") from None
    say("\n".join(verdict.lines))
    if verdict.faults or not verdict.feasible:
        raise typer.Exit(REFUTED)


@app.command()
def batch(
    campaign: Annotated[Path, typer.Argument(metavar="CAMPAIGN.toml", help="Instances, solvers, seeds and limits.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder of results; one that is there is gone on with.")],
    workers: Annotated[
        int | None, typer.Option("--workers", "-w", help="Jobs at a time; default the cores of this machine.")
    ] = None,
    scheduler: Annotated[
        str | None, typer.Option("--scheduler", help="Dask scheduler such as tcp://10.0.0.1:8786, or local.")
    ] = None,
    retry: Annotated[bool, typer.Option("--retry", help="Run jobs again that brought no result.")] = False,
) -> None:
    """Solve a campaign: every instance by every solver with every seed; the same command goes on after a stop."""
    from prunesolve.campaigns import read_campaign, run_campaign
    from prunesolve.campaigns.cluster import LOCAL, DaskWorkers
    from prunesolve.campaigns.display import shown_progress
    from prunesolve.campaigns.processes import LocalWorkers

    if workers is not None and workers < 1:
        raise InvalidProblem(f"--workers: expected at least 1, got {workers}")
    if scheduler not in (None, LOCAL) and workers is not None:
        raise InvalidProblem("--workers: a scheduler has its own workers; leave one of the two out")
    count = workers or os.cpu_count() or 1

    def start(folder: Path) -> Any:
        return LocalWorkers(count, folder / "workers.log") if scheduler is None else DaskWorkers(scheduler, count)

    plan = read_campaign(campaign)
    with shown_progress() as watcher:
        try:
            tally = run_campaign(plan, out, start, watcher, retry=retry)
        except KeyboardInterrupt:
            watcher.say(f"stopped; what has ended is in {out}, and the same command goes on")
            raise
    done = tally.earlier + tally.done
    without = f"; {tally.failed} without a result, --retry runs them again" if tally.failed else ""
    say(f"{out}: {done} of {tally.total} jobs done, {tally.done} now{without}")
    if tally.failed:
        raise typer.Exit(INFEASIBLE)


@app.command()
def report(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `batch` wrote.")],
    out: Annotated[
        Path | None, typer.Option("--out", "-o", help="Page to write; default DIR/report.html, tables beside it.")
    ] = None,
) -> None:
    """Compare the solvers of a campaign: one HTML page, which needs no network, and its tables as CSV."""
    from prunesolve.campaigns import Records
    from prunesolve.campaigns.reporting import write_page

    if out is not None:
        check_file(out, ".html")
    records = Records.load(folder)
    say(f"{write_page(records, folder / 'report.html' if out is None else out)}: {len(records.rows)} jobs")


@app.command()
def export(
    folder: Annotated[Path, typer.Argument(metavar="DIR", help="What `batch` wrote.")],
    form: Annotated[Form, typer.Option("--to", help="Submission of QOBLIB, dimod SampleSets or result files.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder to write into.")],
    job: Annotated[list[str] | None, typer.Option("--job", help="These jobs only.")] = None,
    submitter: Annotated[str, typer.Option("--submitter", help="Of qoblib: names, parted by commas.")] = "N/A",
    affiliation: Annotated[str, typer.Option("--affiliation", help="Of qoblib: as many affiliations.")] = "N/A",
    reference: Annotated[str, typer.Option("--reference", help="Of qoblib: paper or repository.")] = "N/A",
    threshold: Annotated[float, typer.Option("--threshold", help="Of qoblib: what a successful run may miss.")] = 0.0,
    remarks: Annotated[str, typer.Option("--remarks", help="Of qoblib.")] = "",
) -> None:
    """Write what a campaign found in the forms of other people's tools."""
    from prunesolve import exports
    from prunesolve.campaigns import Records

    check_folder(out)
    about: dict[str, Any] = {}
    if form is Form.qoblib:
        about = {"submitter": submitter, "affiliation": affiliation, "reference": reference}
        about |= {"threshold": threshold, "remarks": remarks}
    records = Records.load(folder)
    done = exports.export(records, out, form.value, job=job, load=records.problem, **about)
    say(f"{out}: {len(done.written)} files")
    for reason in done.left_out:
        notice(f"left out: {reason}")


@app.command()
def explain(
    instance: Annotated[str, typer.Argument(metavar="INSTANCE[:k]", help="Instance file or library:NAME.")],
    results: Annotated[
        list[Path],
        typer.Argument(
            metavar="RESULT...", help="Result files, the first is explained; or what `batch` wrote, its best result."
        ),
    ],
    most: Annotated[int, typer.Option("--most", help="Most units shown, those nearest to the border.")] = 20,
    file_format: FileFormat = "auto",
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Say why a solution keeps what it keeps: terms, couplings, multipliers, the cost of a flip, other results."""
    from prunesolve.explanations import best_told, explain_result

    problem = read_instance(instance, file_format)
    told = told_in(results, problem)
    chosen = best_told(problem, told) if results[0].is_dir() else told[0]
    explained = explain_result(problem, chosen, [other for other in told if other is not chosen], most=most)
    say(explained.to_json() if as_json else str(explained))


def told_in(paths: list[Path], problem: Any) -> list[dict[str, Any]]:
    """What result files tell, and of campaigns the results of the problem."""
    from prunesolve.campaigns import Records

    found: list[dict[str, Any]] = []
    for path in paths:
        if not path.is_dir():
            read_result(path)
            found.append(read_object(path))
            continue
        records = Records.load(path)
        jobs = [row["job"] for row in records.rows if row["instance_hash"] == problem.hash]
        if not jobs:
            raise InvalidProblem(f"{path}: expected results of instance {problem.hash}, the campaign has none")
        found += [told for told in map(records.told, jobs) if told is not None]
    return found


def amount(flag: str, text: str | None) -> int | float | None:
    """A budget from its text: with a point a fraction, without one a count."""
    if text is None:
        return None
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        raise InvalidProblem(f"{flag}: expected a fraction such as 0.5 or a count such as 64, got {text!r}") from None


def known_of(name: str) -> str:
    """What is known of a library instance, in a few lines."""
    from prunesolve.problems import library

    facts = library.about(name)
    shown = {"from": facts["provenance"], "by": facts["formulation"], "budget": facts["budget"]}
    shown["best known"] = f"{facts['best_known']:.12g}{' (proved optimal)' if facts['proved'] else ''}"
    shown["bound"] = f"{facts['bound']:.12g}"
    return "\n".join(f"  {word:<12}{value}" for word, value in shown.items())


def threads_of(solver: str, threads: int | None) -> dict[str, int]:
    """The option `threads`, for a solver that has it; the others use one."""
    from prunesolve import solvers

    if threads is None:
        return {}
    if threads < 1:
        raise InvalidProblem(f"--threads: expected at least 1, got {threads}")
    if "threads" in solvers.solver_class(solver).options():
        return {"threads": threads}
    if threads > 1:
        notice(f"prunesolve: {solver} uses one thread")
    return {}


def split(names: str | None) -> list[str] | None:
    """A comma-separated list."""
    return None if names is None else [name.strip() for name in names.split(",") if name.strip()]


def options(pairs: list[str] | None) -> dict[str, Any]:
    """Options from k=v texts; values are Python literals, anything else is a string."""
    found = {}
    for pair in pairs or ():
        key, equals, value = pair.partition("=")
        if not equals or not key:
            raise InvalidProblem(f"--option: expected k=v, got {pair!r}")
        try:
            found[key.replace("-", "_")] = ast.literal_eval(value)
        except (ValueError, SyntaxError):
            found[key.replace("-", "_")] = value
    return found


def check_file(path: Path, suffix: str) -> None:
    """Refuse a file that could not be written or read back, before the work and not after it."""
    if path.suffix != suffix:
        raise InvalidProblem(f"{path}: expected the name of a {suffix} file to write")
    if path.is_dir():
        raise InvalidProblem(f"{path}: expected a file to write, got a folder")
    check_folder(path.parent)


def check_folder(path: Path) -> None:
    """Refuse a folder that could not be written into; it need not exist yet."""
    there = next((p for p in (path, *path.absolute().parents) if p.exists()), Path("/"))
    if not there.is_dir():
        raise InvalidProblem(f"{path}: expected a folder to write into, but {there} is a file")
    if not os.access(there, os.W_OK | os.X_OK):
        raise InvalidProblem(f"{path}: expected a folder to write into, but {there} is not writable")


def load_data(path: Path) -> Any:
    """The batches in an `.npz` of inputs and targets."""
    from prunesolve.bridges.torch.data import Batches

    return Batches.from_npz(existing(path))


def load_model(reference: str) -> Any:
    """The model that MODULE:FACTORY or FILE.py:FACTORY returns; the current folder is importable."""
    import torch

    module_name, colon, factory_name = reference.rpartition(":")
    if not colon or not module_name or not factory_name:
        raise InvalidProblem(f"model: expected MODULE:FACTORY or FILE.py:FACTORY, got {reference!r}")
    module = _module(module_name)
    if not hasattr(module, factory_name):
        callables = [name for name, value in vars(module).items() if callable(value) and not name.startswith("_")]
        raise unknown(f"factory in {module_name}", factory_name, callables)
    factory = getattr(module, factory_name)
    try:
        model = factory if isinstance(factory, torch.nn.Module) else factory()
    except Exception as error:
        raise InvalidProblem(f"{reference}: the factory raised {type(error).__name__}: {error}") from error
    if not isinstance(model, torch.nn.Module):
        raise InvalidProblem(f"{reference}: expected a torch.nn.Module, got {type(model).__name__}")
    return model


def _module(name: str) -> Any:
    try:
        return _module_in_file(existing(name)) if name.endswith(".py") else _module_named(name)
    except InvalidProblem:
        raise
    except Exception as error:
        raise InvalidProblem(f"{name}: importing it raised {type(error).__name__}: {error}") from error


def _module_in_file(path: Path) -> Any:
    spec = importlib.util.spec_from_file_location(path.stem, path)
    if spec is None or spec.loader is None:
        raise InvalidProblem(f"{path}: cannot be imported as Python")
    module = importlib.util.module_from_spec(spec)
    # torch.export and pickling look a class up by its module's name
    sys.modules.setdefault(path.stem, module)
    sys.path.insert(0, str(path.resolve().parent))
    try:
        spec.loader.exec_module(module)
    except BaseException:
        if sys.modules.get(path.stem) is module:
            del sys.modules[path.stem]
        raise
    return module


def _module_named(name: str) -> Any:
    sys.path.insert(0, str(Path.cwd()))
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        # what the module itself misses is another matter
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        raise unknown("module", name, [p.stem for p in Path.cwd().glob("*.py")]) from None


def read_object(path: Path) -> dict[str, Any]:
    """The JSON object in a file."""
    try:
        told = json.loads(existing(path).read_text(encoding="utf-8"))
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise InvalidProblem(f"{path}: expected the JSON that `solve --out` writes ({error})") from None
    if not isinstance(told, dict):
        raise InvalidProblem(f"{path}: expected a JSON object, got {type(told).__name__}")
    return told


def read_result(path: Path) -> Any:
    """The result in a file."""
    from prunesolve.solvers import Result

    text = json.dumps(read_object(path))
    try:
        return Result.from_json(text)
    except InvalidProblem as error:
        raise InvalidProblem(f"{path}: {error}") from None


def read_solution(path: Path) -> Any:
    """The solution in a result file."""
    solution = read_result(path).solution
    if solution is None:
        raise InvalidProblem(f"{path}: expected a result with a solution to start from, got one without")
    return solution


def write_json(path: Path, told: Mapping[str, Any]) -> None:
    """Write a JSON object, whole or not at all."""
    from prunesolve.problems._npz import whole_file

    with whole_file(path) as file:
        file.write(json.dumps(told, allow_nan=False).encode())


def summary(told: Mapping[str, Any]) -> str:
    """A result in a few lines."""
    lines = [f"{'instance':<12}{told['instance']}  ({told['instance_hash']})", f"{'solver':<12}{told['solver']}"]
    if "picked" in told["details"]:
        lines.append(f"{'picked':<12}{told['details']['picked']}")
    lines.append(f"{'status':<12}{told['status']}")
    if told["objective"] is not None:
        native = "" if told["sense"] == "minimise" else f"  ({told['native_objective']:.12g} maximised)"
        lines.append(f"{'objective':<12}{told['objective']:.12g}{native}")
    if told["bound"] is not None:
        gap = "" if told["gap"] is None else f"  (gap {100 * told['gap']:.4g} %)"
        lines.append(f"{'bound':<12}{told['bound']:.12g}{gap}")
    lines.append(f"{'feasible':<12}{'yes' if told['feasible'] else 'no'}")
    lines += list(_front_lines(told)) if "front" in told else []
    if told["kept"] is not None:
        lines.append(f"{'kept':<12}{told['kept']} of {told['n']}")
    lines.append(f"{'seconds':<12}{told['seconds']:.3f}  (seed {told['seed']}, {told['evaluations']} evaluations)")
    for layer, channels in (told["kept_units"] or {}).items():
        lines.append(f"  {layer}: {' '.join(map(str, channels)) or 'none'}")
    if isinstance(told["solution"], Mapping):
        lines += list(_plan_lines(told))
    elif told["kept_units"] is None and told["solution"] is not None:
        lines.append(f"{'solution':<12}{' '.join(map(str, told['solution']))}")
    return "\n".join(lines)


def _plan_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The first rows of a transport plan."""
    rows, details = told["solution"]["plan"], told["details"]
    yield f"{'carried':<12}{details['mass_carried']:.12g} of {details['mass_asked']:.12g}, {len(rows)} entries"
    for i, j, mass in rows[:PLAN_ROWS]:
        yield f"  {i} -> {j}  {mass:.6g}"
    if len(rows) > PLAN_ROWS:
        yield f"  and {len(rows) - PLAN_ROWS} more; --json tells them all"


def _front_lines(told: Mapping[str, Any]) -> Iterator[str]:
    """The points of a front, or what came nearest to one."""
    front, knee = told["front"], told["front"]["knee"]
    names = ", ".join(front["names"])
    if not front["objectives"]:
        nearest = told["details"].get("least_violated")
        yield f"{'front':<12}no point within the limits"
        if nearest is not None:
            yield f"{'nearest':<12}{', '.join(f'{v:.6g}' for v in nearest['objectives'])}  ({names})"
        return
    if front["hypervolume"] is None:
        (least, dearest), (most, cheapest) = front["objectives"][0], front["objectives"][-1]
        yield f"{'front':<12}{len(front['objectives'])} points of {names}, {told['details']['front']}"
        yield f"  from {least:.6g}, {dearest:.6g}, shown below, to {most:.6g}, {cheapest:.6g}"
        return
    yield f"{'front':<12}{len(front['objectives'])} points of {names}; hypervolume {front['hypervolume']:.6g}"
    for i, values in enumerate(front["objectives"]):
        yield f"  {i:<10}{', '.join(f'{v:.6g}' for v in values)}{'  knee, shown below' if i == knee else ''}"


def describe(thing: Any) -> str:
    """What a file holds, in a line or a few."""
    from prunesolve.pipeline import Report
    from prunesolve.problems import (
        BinaryQuadratic,
        Clustering,
        LevelChoice,
        MultiObjective,
        PartialTransport,
        SparseRegression,
        Statistics,
        SubsetRegression,
    )
    from prunesolve.solvers import Result

    if isinstance(thing, LevelChoice):
        costs = "separable" if thing.is_separable else "chain" if thing.is_chain else "general pair"
        return (
            f"LevelChoice, {thing.n} layers of {min(thing.sizes, default=0)} to {max(thing.sizes, default=0)} levels, "
            f"{costs} costs, {thing.total} up to {thing.budget:g}, hash {thing.hash}"
        )
    if isinstance(thing, PartialTransport):
        weights = "any weights" if thing.unit is None else f"equal weights {thing.unit:g}: {thing.pairs} pairs"
        return (
            f"PartialTransport, {thing.n} sources, {thing.m} targets, {thing.cost.dtype} costs, mass {thing.mass:g} of "
            f"{thing.source.sum():g} and {thing.target.sum():g}, {weights}, hash {thing.hash}"
        )
    if isinstance(thing, Clustering):
        of = "distances" if thing.features is None else f"{thing.features.shape[1]} features"
        most = "" if thing.max_size is None else f" of at most {thing.max_size}"
        return f"Clustering, {thing.n} points by {of}, {thing.n_clusters} clusters{most}, hash {thing.hash}"
    if isinstance(thing, SparseRegression):
        own = "" if thing.row_factors is None else f", {thing.row_factors.shape[2]} factors for each output"
        return (
            f"SparseRegression, {thing.shape[0]} outputs of {thing.shape[1]} inputs{own}, {thing.pattern.words}: "
            f"{thing.k} of {thing.n} weights stay, hash {thing.hash}"
        )
    if isinstance(thing, SubsetRegression):
        constraints = ", ".join(_constraint_text(c) for c in thing.constraints) or "none"
        return (
            f"SubsetRegression, {thing.n} groups of {len(thing.block)} inputs, {thing.cross.shape[1]} outputs, "
            f"constraints: {constraints}, hash {thing.hash}"
        )
    if isinstance(thing, BinaryQuadratic):
        name = thing.meta.get("name")
        constraints = ", ".join(_constraint_text(c) for c in thing.constraints) or "none"
        return (
            f"{name + ': ' if name else ''}BinaryQuadratic, n = {thing.n}, {type(thing.couplings).__name__} couplings, "
            f"constraints: {constraints}, sense {thing.meta.get('sense', 'minimise')}, hash {thing.hash}"
        )
    if isinstance(thing, MultiObjective):
        constraints = ", ".join(_constraint_text(c) for c in thing.constraints) or "none"
        return (
            f"MultiObjective, n = {thing.n}, objectives: {', '.join(thing.objectives)}, constraints: {constraints}, "
            f"{len(thing.starts)} points to begin with, hash {thing.hash}"
        )
    if isinstance(thing, Statistics):
        head = f"Statistics, {thing.n} units in {len(thing.groups)} groups; saliency: {', '.join(thing.saliency)}"
        return "\n".join([head, *(f"  {g.name}: {g.size} units" for g in thing.groups)])
    if isinstance(thing, Result):
        return f"Result, status {thing.status}, objective {thing.objective}, bound {thing.bound}, by {thing.solver}"
    if isinstance(thing, Report):
        return str(thing)
    if isinstance(thing, Mapping):
        return "\n".join(_described(thing))
    return f"Program: {type(thing).__name__} with {sum(p.numel() for p in thing.parameters()):,} parameters"


def _described(thing: Mapping[str, Any]) -> Iterator[str]:
    """Masks, widths or weights, a line each."""
    if hasattr(thing, "inputs"):
        yield f"Masks of {len(thing)} modules"
        yield from (f"  {path}: {int(m.sum())} of {m.numel()} kept" for path, m in thing.items())
    elif "modules" in thing:
        yield f"Widths of {len(thing['modules'])} modules"
        for path, numbers in thing["modules"].items():
            yield f"  {path}: {', '.join(f'{name} = {number}' for name, number in numbers.items())}"
    else:
        yield f"Weights: {len(thing)} tensors, {sum(t.numel() for t in thing.values()):,} numbers"
        yield from (f"  {name}: {tuple(t.shape)}" for name, t in thing.items())


def _constraint_text(constraint: Any) -> str:
    from prunesolve.problems import Budget, Cardinality

    if isinstance(constraint, Cardinality):
        return f"Cardinality({constraint.k})"
    if isinstance(constraint, Budget):
        return f"Budget(limit {constraint.limit:g}{', bilinear' if constraint.pair is not None else ''})"
    return f"GroupBounds({len(constraint.low)} groups)"


def say(text: str) -> None:
    """Data, on stdout."""
    print(text)  # noqa: T201


def notice(text: str) -> None:
    """Everything else, on stderr."""
    print(text, file=sys.stderr)  # noqa: T201


def finish(result: Any) -> None:
    """Leave with the exit code the result stands for."""
    if result.details.get("interrupted"):
        raise typer.Exit(INTERRUPTED)
    if not result.feasible:
        raise typer.Exit(INFEASIBLE)


def main(arguments: list[str] | None = None) -> None:
    """Entry point of the `prunesolve` command."""
    if arguments is None:
        # collections while numba and torch load, and at exit, find nothing: a third of a short command's time
        gc.set_threshold(200_000, 20, 100)
        atexit.register(gc.freeze)
        sys.meta_path.insert(0, NoBlasForNumba)
        # POT would load torch to take tensors, which no command hands to it
        os.environ.setdefault("POT_BACKEND_DISABLE_PYTORCH", "1")
    logging.basicConfig(format="prunesolve: %(message)s", stream=sys.stderr, level=logging.WARNING)
    try:
        # typer itself turns Ctrl-C into the code 130, its older versions into an Abort
        code = run(sys.argv[1:] if arguments is None else arguments)
    except (KeyboardInterrupt, typer.Abort):
        code = INTERRUPTED
    except (InvalidProblem, UnsupportedProblem, SolverFailed, OSError, MemoryError) as error:
        code = refuse(str(error) or type(error).__name__)
    except Exception as error:
        # typer raises click's usage errors from a private module that moved between its versions
        if not hasattr(error, "format_message"):
            raise
        code = refuse(error.format_message())
    if code == INTERRUPTED:
        notice("prunesolve: interrupted")
    sys.exit(code)


def run(arguments: list[str]) -> int:
    """The exit code of a command line. Read by typer, but for a plain `solve`, which is done before typer has begun."""
    plain = plain_arguments(solve, arguments[1:]) if arguments[:1] == ["solve"] else None
    if plain is None:
        return app(arguments, standalone_mode=False) or 0
    try:
        solve(**plain)
    except typer.Exit as leave:
        return leave.exit_code
    return 0


def refuse(message: str) -> int:
    """Bad input ends in one line on stderr; a call without arguments has printed its help already."""
    if message:
        notice(f"prunesolve: {' '.join(message.split())}")
    return BAD_INPUT


if __name__ == "__main__":
    main()
