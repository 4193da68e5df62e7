"""What the commands are given: the types of their arguments, and what texts and files stand for."""

from __future__ import annotations

import ast
import enum
import importlib
import importlib.util
import json
import os
import sys
from pathlib import Path
from typing import Annotated, Any

import typer

from prunesolve.instances import existing
from prunesolve.printing import notice
from prunesolve.problems import InvalidProblem, unknown


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


def amount(flag: str, text: str | None) -> int | float | None:
    """A budget from its text: with a point a fraction, without one a count."""
    if text is None:
        return None
    try:
        return float(text) if "." in text or "e" in text.lower() else int(text)
    except ValueError:
        raise InvalidProblem(f"{flag}: expected a fraction such as 0.5 or a count such as 64, got {text!r}") from None


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
