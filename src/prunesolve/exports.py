r"""What a campaign found, in the forms of other people's tools.

    qoblib       submissions to the Quantum Optimization Benchmarking Library, one for each solver
    sampleset    dimod SampleSets as JSON, one for each instance
    results      what `prunesolve solve --out` writes, one for each job

A folder is written whole or not at all.
"""

from __future__ import annotations

import csv
import datetime
import io
import json
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from itertools import pairwise
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from prunesolve.instances import read_instance
from prunesolve.problems import BinaryQuadratic, InvalidProblem, UnsupportedProblem, unknown
from prunesolve.problems._arrays import Bits
from prunesolve.problems._npz import whole_folder
from prunesolve.problems.readers import native_objective

Row = Mapping[str, Any]
_ROUNDING = 1e-9  # relative, between sums of the same numbers in another order


class AnyRecords(Protocol):
    """The finished jobs of a campaign, as `prunesolve.campaigns.Records` has them."""

    @property
    def rows(self) -> list[dict[str, Any]]:
        """One for each job."""

    @property
    def environment(self) -> Mapping[str, Any]:
        """Machine and versions."""

    def told(self, job: str) -> dict[str, Any] | None:
        """What `solve --out` writes of a job."""


@dataclass(frozen=True)
class Submission:
    """What a submission says that the campaign does not know.

    Parameters
    ----------
    submitter, affiliation : str
        Names parted by commas, and as many affiliations in their order.
    reference : str
        Paper, repository or page with the details.
    date : str, optional
        Of the submission, YYYY-MM-DD; today by default.
    threshold : float
        Epsilon >= 0 within which of the best value a run is successful.
    remarks : str
        Put before our own.
    """

    submitter: str = "N/A"
    affiliation: str = "N/A"
    reference: str = "N/A"
    date: str = field(default_factory=lambda: datetime.datetime.now(datetime.UTC).date().isoformat())
    threshold: float = 0.0
    remarks: str = ""

    def __post_init__(self) -> None:
        if not re.fullmatch(r"\d{4}-\d\d-\d\d", self.date):
            raise InvalidProblem(f"date: expected YYYY-MM-DD, got {self.date!r}")
        if not (math.isfinite(self.threshold) and self.threshold >= 0):
            raise InvalidProblem(f"threshold: expected a number >= 0, got {self.threshold!r}")


@dataclass(frozen=True)
class Exported:
    """What an export wrote.

    Parameters
    ----------
    folder : path
        Where.
    written : tuple of str
        Files, relative to the folder.
    left_out : tuple of str
        What the form has no place for, and why.
    """

    folder: Path
    written: tuple[str, ...]
    left_out: tuple[str, ...]


def export(
    records: AnyRecords,
    folder: str | Path,
    form: str,
    *,
    job: str | Iterable[str] | None = None,
    load: Callable[[str], Any] = read_instance,
    **about: Any,
) -> Exported:
    """Write what a campaign found into a new folder, or beside what a folder holds under other names.

    Parameters
    ----------
    records : Records
        The campaign.
    folder : path
        To write into.
    form : str
        "qoblib", "sampleset" or "results".
    job : str or several, optional
        These jobs only.
    load : callable
        The problem of an instance's name, where the form needs it; by default as `solve` reads it.
    **about
        For "qoblib" the fields of `Submission`: submitter, affiliation, reference, date, threshold, remarks.

    Returns
    -------
    Exported
        Files written, and what was left out for which reason.

    Raises
    ------
    InvalidProblem
        If the form, a job or a field is unknown, nothing is there to write, or the folder holds such files already.

    Examples
    --------
    >>> import tempfile
    >>> from types import SimpleNamespace
    >>> row = {"job": "a1", "instance": "nets/a.npz", "solver": "greedy", "seed": 0, "repeat": 0, "status": "FINISHED"}
    >>> records = SimpleNamespace(rows=[row], environment={}, told=lambda job: {"solution": [0, 2], "n": 3})
    >>> export(records, tempfile.mkdtemp(), "results").written
    ('nets_a.npz-greedy-seed0-0.json',)
    """
    if form not in _FORMS:
        raise unknown("form of an export", form, _FORMS)
    fields = Submission.__dataclass_fields__ if form == "qoblib" else {}
    for name in about:
        if name not in fields:
            raise unknown(f"field of the form {form}", name, fields)
    left_out: list[str] = []
    files = _FORMS[form](_Source(records, _chosen(records, job), load), left_out, **about)
    with whole_folder(folder) as room:
        written = sorted(_put(files, room, Path(folder)))
        if not written:
            raise InvalidProblem(f"{folder}: nothing to export; {'; '.join(left_out) or 'no job has finished'}")
    return Exported(Path(folder), tuple(written), tuple(left_out))


def _chosen(records: AnyRecords, job: str | Iterable[str] | None) -> list[dict[str, Any]]:
    rows = records.rows
    if job is None:
        return rows
    wanted = [job] if isinstance(job, str) else list(job)
    known = {row["job"] for row in rows}
    for name in wanted:
        if name not in known:
            raise unknown("finished job", name, known)
    return [row for row in rows if row["job"] in wanted]


def _put(files: Iterable[tuple[str, str]], room: Path, folder: Path) -> Iterator[str]:
    """Write files into the room, and say their names; what the folder holds already is not replaced."""
    for name, content in files:
        top = folder / Path(name).parts[0]
        if top.exists():
            raise InvalidProblem(f"{top}: is there already; remove it or export into another folder")
        (room / name).parent.mkdir(parents=True, exist_ok=True)
        (room / name).write_text(content, encoding="utf-8")
        yield name


@dataclass(frozen=True)
class _Source:
    """The rows to export, their solutions and their problems."""

    records: AnyRecords
    rows: Sequence[Row]
    load: Callable[[str], Any]

    def instances(self) -> dict[str, list[Row]]:
        """The rows of each instance, in order of first appearance."""
        found: dict[str, list[Row]] = {}
        for row in self.rows:
            found.setdefault(row["instance"], []).append(row)
        return found

    def told(self, row: Row) -> dict[str, Any] | None:
        """What was told of a row's solution, None where it brought none."""
        told = self.records.told(row["job"])
        return None if told is None or told.get("solution") is None else told

    def problem(self, instance: str, rows: Sequence[Row]) -> BinaryQuadratic:
        """The instance, which must be what the rows were solved on."""
        problem = self.load(instance)
        if not isinstance(problem, BinaryQuadratic):
            raise UnsupportedProblem(f"expected a BinaryQuadratic, got a {type(problem).__name__}")
        for row in rows:
            if row["instance_hash"] not in (None, problem.hash):
                raise InvalidProblem(f"is {problem.hash} now, was {row['instance_hash']} when it was solved")
        return problem


class _Names:
    """Names made safe for files; two things never get the same."""

    def __init__(self) -> None:
        self._taken: set[str] = set()

    def of(self, *parts: Any) -> str:
        """A file's name made of the parts, numbered from 2 on where it is taken."""
        wanted = "-".join(_safe(str(part)) for part in parts)
        name, number = wanted, 1
        # some file systems take upper and lower case for the same
        while name.casefold() in self._taken:
            number += 1
            name = f"{wanted}-{number}"
        self._taken.add(name.casefold())
        return name


def _safe(name: str) -> str:
    return re.sub(r"[^A-Za-z0-9._-]+", "_", name).lstrip("._-")[-100:] or "unnamed"


def _json(value: Any) -> str:
    return json.dumps(value, allow_nan=False, indent=1) + "\n"


# results and sample sets


def _results(source: _Source, left_out: list[str]) -> Iterator[tuple[str, str]]:
    names = _Names()
    for row in source.rows:
        told = source.records.told(row["job"])
        if told is None:
            left_out.append(f"job {row['job']}: {row['status']}, no result")
            continue
        name = names.of(row["instance"], row["solver"], f"seed{row['seed']}", row["repeat"])
        yield f"{name}.json", _json(told)


def _sample_sets(source: _Source, left_out: list[str]) -> Iterator[tuple[str, str]]:
    from prunesolve.bridges.dimod import sample_set

    names = _Names()
    for instance, rows in source.instances().items():
        told = [found for row in rows if (found := source.told(row)) is not None]
        if not told:
            left_out.append(f"{instance}: none of {len(rows)} runs brought a solution")
            continue
        try:
            found = sample_set(source.problem(instance, rows), told)
        except (InvalidProblem, UnsupportedProblem) as error:
            left_out.append(f"{instance}: {error}")
            continue
        found.info["instance"] = instance
        yield f"{names.of(instance)}.json", json.dumps(found.to_serializable()) + "\n"


# the Quantum Optimization Benchmarking Library: CONTRIBUTING.md and misc/ci/check_submission.py of ZIB-AOPT/QOBLIB

QOBLIB_FIELDS = (
    "Problem",
    "Submitter",
    "Affiliation",
    "Date",
    "Reference",
    "Best Objective Value",
    "Optimality Bound",
    "Modeling Approach",
    "# Decision Variables",
    "# Binary Variables",
    "# Integer Variables",
    "# Continuous Variables",
    "# Non-Zero Coefficients",
    "Coefficients Type",
    "Coefficients Range",
    "Workflow",
    "Algorithm Type",
    "Paradigm",
    "# Runs",
    "# Feasible Runs",
    "# Successful Runs",
    "Success Threshold",
    "Hardware Specifications",
    "Total Runtime",
    "Time to Solution",
    "CPU Runtime",
    "GPU Runtime",
    "QPU Runtime",
    "Other HW Runtime",
    "Remarks",
)


def _submissions(source: _Source, left_out: list[str], **about: Any) -> Iterator[tuple[str, str]]:
    """For each solver DATE_SOLVER_SUBMITTER/INSTANCE/ with summary, best solution and objective time series."""
    says, names, tops = Submission(**about), _Names(), _Names()
    author = "unnamed" if says.submitter == "N/A" else (says.submitter.split(",")[0].split() or ["unnamed"])[-1]
    folders = {
        solver: tops.of(f"{says.date.replace('-', '')}_{_safe(solver)}_{_safe(author)}")
        for solver in dict.fromkeys(row["solver"] for row in source.rows)
    }
    for instance, rows in source.instances().items():
        try:
            problem = source.problem(instance, rows)
        except (InvalidProblem, UnsupportedProblem) as error:
            left_out.append(f"{instance}: {error}")
            continue
        name = names.of(instance)
        for solver in dict.fromkeys(row["solver"] for row in rows):
            runs = _Runs(problem, [(row, source.told(row)) for row in rows if row["solver"] == solver], says)
            if runs.best is None:
                left_out.append(f"{instance}, {solver}: none of {len(runs.of)} runs brought a solution")
                continue
            place = f"{folders[solver]}/{name}/{name}"
            yield f"{place}_summary.csv", _csv({"Problem": name} | runs.summary(source.records.environment))
            yield f"{place}_solution.sol", _solution(runs.best)
            yield f"{place}_objective_time_series.json", _json(runs.series())


def _csv(values: Mapping[str, Any]) -> str:
    text = io.StringIO()
    writer = csv.DictWriter(text, QOBLIB_FIELDS, lineterminator="\n")
    writer.writeheader()
    writer.writerow({name: "N/A" if value is None else value for name, value in values.items()})
    return text.getvalue()


def _solution(x: Bits) -> str:
    """A value for each variable, x#1 the first, as the library's problems over bits have it."""
    return "".join(f"x#{i} {int(bit)}\n" for i, bit in enumerate(x, 1))


@dataclass(frozen=True)
class _Runs:
    """The runs of one solver on one instance: each a row and what was told of its solution."""

    problem: BinaryQuadratic
    of: Sequence[tuple[Row, Mapping[str, Any] | None]]
    says: Submission

    @cached_property
    def feasible(self) -> list[tuple[float, Row]]:
        """Objective, minimised, and row of each run that ended with a feasible solution."""
        return [(row["objective"], row) for row, told in self.of if told is not None and row["feasible"]]

    @property
    def least(self) -> float | None:
        """The best objective of all runs, minimised."""
        return min((objective for objective, _ in self.feasible), default=None)

    @cached_property
    def best(self) -> Bits | None:
        """(n,) the best solution; the least infeasible one where no run found a feasible one."""
        found = [_bits(told, self.problem.n) for _, told in self.of if told is not None]
        return min(found, key=lambda x: (self._broken(x), self.problem.value(x)), default=None)

    def _broken(self, x: Bits) -> float:
        return 0.0 if self.problem.is_feasible(x) else float(self.problem.violation(x))

    @property
    def successful(self) -> int:
        """Runs within the threshold of the best value this solver found; relative to its size, whatever its sign."""
        least = self.least
        if least is None:
            return 0
        slack = (self.says.threshold + _ROUNDING) * abs(least)
        return sum(objective <= least + slack for objective, _ in self.feasible)

    def series(self) -> list[list[dict[str, float]]]:
        """Incumbents of each run that has some, in the sense of the instance's file, and one more at its end."""
        return [rows for row, told in self.of if told is not None and (rows := self._incumbents(row, told))]

    def _incumbents(self, row: Row, told: Mapping[str, Any]) -> list[dict[str, float]]:
        traced = [(t, objective) for t, _, objective, _ in told.get("trace", ()) if objective is not None]
        improved = traced[:1] + [after for before, after in pairwise(traced) if after[1] < before[1]]
        if improved and row["seconds"] is not None and row["seconds"] > improved[-1][0]:
            improved.append((row["seconds"], improved[-1][1]))
        return [{"Time": t, "Incumbent": native_objective(self.problem, value)} for t, value in improved]

    def _to_solution(self) -> Iterator[float]:
        """Seconds after which each run had its own best value."""
        for rows in self.series():
            yield next(entry["Time"] for entry in rows if entry["Incumbent"] == rows[-1]["Incumbent"])

    def summary(self, environment: Mapping[str, Any]) -> dict[str, Any]:
        """The fields of the submission template, but for the problem's name."""
        rows = [row for row, _ in self.of]
        says, least, first = self.says, self.least, rows[0]
        return {
            "Submitter": says.submitter,
            "Affiliation": says.affiliation,
            "Date": says.date,
            "Reference": says.reference,
            "Best Objective Value": None if least is None else native_objective(self.problem, least),
            "Optimality Bound": self._bound(rows),
            **_model(self.problem),
            "Workflow": f"Solved as it is by prunesolve {first['version']}: {first['solver_repr']}",
            "Algorithm Type": "Deterministic" if str(first["solver_repr"]).startswith("Exact(") else "Stochastic",
            "Paradigm": "Classical",
            "# Runs": len(rows),
            "# Feasible Runs": len(self.feasible),
            "# Successful Runs": self.successful,
            "Success Threshold": says.threshold,
            "Hardware Specifications": _hardware(environment),
            "Total Runtime": _mean(_total(row) for row in rows),
            "Time to Solution": _mean(self._to_solution()),
            "CPU Runtime": _mean(row["seconds"] for row in rows),
            **dict.fromkeys(("GPU Runtime", "QPU Runtime", "Other HW Runtime")),
            "Remarks": self._remarks(rows),
        }

    def _bound(self, rows: Sequence[Row]) -> float | None:
        """The tightest proved bound; the best value itself, which claims the optimum, where a run proved it."""
        least, bounds = self.least, [row["bound"] for row in rows if row["bound"] is not None]
        if least is not None and any(row["status"] == "OPTIMAL" for row in rows):
            return native_objective(self.problem, least)
        return native_objective(self.problem, max(bounds)) if bounds else None

    def _remarks(self, rows: Sequence[Row]) -> str:
        known = next((row["best_known"] for row in rows if row["best_known"] is not None), None)
        remarks = [
            *([self.says.remarks] if self.says.remarks else []),
            "Successful: feasible and within the threshold, relative to its absolute value, of the best value that "
            "this solver found",
            *([] if known is None else [f"best known value {native_objective(self.problem, known)!r}"]),
            "runtimes are means over runs in seconds, compilation and queueing left out",
            f"seeds {', '.join(str(seed) for seed in sorted({row['seed'] for row in rows}))}",
            f"instance hash {self.problem.hash}",
        ]
        return "; ".join(remarks) + "."


def _bits(told: Mapping[str, Any], n: int) -> Bits:
    x = np.zeros(n, dtype=bool)
    x[told["solution"]] = True
    return x


def _total(row: Row) -> float | None:
    """Seconds of a whole job without compilation, of its search where they are not known."""
    if row["wall_seconds"] is None:
        return row["seconds"]
    return max(row["wall_seconds"] - (row["compile_seconds"] or 0.0), row["seconds"] or 0.0)


def _mean(values: Iterable[float | None]) -> float | None:
    known = [value for value in values if value is not None]
    return round(math.fsum(known) / len(known), 6) if known else None


def _hardware(environment: Mapping[str, Any]) -> str | None:
    """Processor, cores, memory and system as far as they are known."""
    words = {"cpu": "{}", "cores": "{} cores", "threads": "{} threads a run", "system": "{}"}
    told = [words[key].format(environment[key]) for key in words if environment.get(key) is not None]
    return "; ".join(told) or None


def _model(problem: BinaryQuadratic) -> dict[str, Any]:
    """How the instance is modelled: constraints, variables and coefficients, in the sense of its file."""
    kinds = ", ".join(dict.fromkeys(type(c).__name__ for c in problem.constraints))
    coefficients = _coefficients(problem)
    whole = bool((coefficients == np.round(coefficients)).all())
    return {
        "Modeling Approach": f"Binary quadratic program with {kinds}" if kinds else "QUBO",
        "# Decision Variables": problem.n,
        "# Binary Variables": problem.n,
        "# Integer Variables": 0,
        "# Continuous Variables": 0,
        "# Non-Zero Coefficients": len(coefficients),
        "Coefficients Type": "Integer" if whole else "Continuous",
        "Coefficients Range": f"{{{coefficients.min():g}; {coefficients.max():g}}}" if len(coefficients) else None,
    }


def _coefficients(problem: BinaryQuadratic) -> Any:
    """Every coefficient of objective and constraints that is not 0."""
    from prunesolve.problems.readers._rows import rows_of

    sign = -1.0 if problem.meta.get("sense") == "maximise" else 1.0
    objective = [sign * problem.linear, *(sign * biases for _, _, biases in problem.couplings.pairs())]
    rows = [part for row in rows_of(problem.constraints, problem.n) for part in (row.cost, row.pairs[2])]
    found = np.concatenate([*objective, *rows])
    return found[found != 0]


_FORMS: dict[str, Callable[..., Iterator[tuple[str, str]]]] = {
    "qoblib": _submissions,
    "sampleset": _sample_sets,
    "results": _results,
}
