"""The command line: data on stdout, progress and notices on stderr.

Exit codes: 0 ok, 1 no feasible solution or a wrong claim, 2 bad input (one line, no traceback), 130 Ctrl-C, the
incumbent printed.
`solve` is kept light: neither torch nor rich nor dimod is imported unless the instance needs it.
"""

from __future__ import annotations

import atexit
import gc
import json
import logging
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prunesolve._startup import NoBlasForNumba, plain_arguments
from prunesolve.arguments import (
    Data,
    Decide,
    Device,
    FileFormat,
    Form,
    FormulationName,
    Keep,
    Layers,
    Macs,
    Model,
    Params,
    Refit,
    Seed,
    SolverName,
    Task,
    TimeLimit,
    amount,
    check_file,
    check_folder,
    load_data,
    load_model,
    options,
    read_object,
    read_result,
    read_solution,
    split,
    threads_of,
    told_in,
)
from prunesolve.instances import LIBRARY, existing, existing_instance, keeping, read_instance
from prunesolve.printing import describe, known_of, notice, say, summary
from prunesolve.problems import InvalidProblem, SolverFailed, UnsupportedProblem

app = typer.Typer(
    name="prunesolve",
    help="Decide which parts of a trained network to keep, as a combinatorial-optimisation problem.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)

INFEASIBLE, REFUTED, BAD_INPUT, INTERRUPTED = 1, 1, 2, 130


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
    from prunesolve.result_files import told_of, write_json

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
    from prunesolve.applying import apply_result

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
    from prunesolve.loading import load
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
