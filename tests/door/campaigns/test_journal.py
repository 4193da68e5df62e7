"""What is on disk when a process was killed, a disk was full or somebody cut a file."""

import json
import os
import signal
import subprocess
import sys

import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from prunesolve.campaigns import Records
from prunesolve.campaigns.journal import Journal
from prunesolve.campaigns.records import COLUMNS, WITHDRAWN
from prunesolve.problems import InvalidProblem


def row(job, status="FINISHED", **cells):
    return dict.fromkeys(COLUMNS) | {"job": job, "status": status, "instance": "a", "solver": "s", "seed": 0} | cells


def told(job):
    return {"solution": list(range(len(job))), "trace": [[0.1, 1, -1.0, None]]}


def filled(folder, jobs, said=None):
    with Journal(folder, (said if said is not None else []).append) as journal:
        for job in jobs:
            journal.add([(row(job), told(job))])
    return folder


JOBS = ["a1", "b22", "c333", "d4444"]


@given(st.data())
def test_cut_at_any_byte_what_is_whole_stays_and_the_rest_is_done_again(tmp_path_factory, data):
    folder = filled(tmp_path_factory.mktemp("cut"), JOBS)
    name = data.draw(st.sampled_from(["journal.jsonl", "solutions.jsonl"]))
    content = (folder / name).read_bytes()
    size = data.draw(st.integers(0, len(content)))
    (folder / name).write_bytes(content[:size])
    whole = content[:size].count(b"\n")
    said = []
    with Journal(folder, said.append) as journal:
        assert list(journal.statuses) == JOBS[:whole]
        assert bool(said) == (size < len(content) and (content[:size][-1:] not in (b"\n", b"") or name[0] == "s"))
        journal.add([(row(job), told(job)) for job in JOBS[whole:]])
        journal.compact()
    records = Records.load(folder)
    assert sorted(r["job"] for r in records.rows) == JOBS
    assert all(records.told(job) == told(job) for job in JOBS)
    assert pq.read_table(folder / "results").num_rows == len(JOBS)


def test_a_line_damaged_in_the_middle_is_left_out_and_said(tmp_path):
    filled(tmp_path, JOBS)
    lines = (tmp_path / "journal.jsonl").read_text().splitlines()
    lines[1] = lines[1][:20] + "#" + lines[1][21:].replace('"', "")
    (tmp_path / "journal.jsonl").write_text("\n".join(lines) + "\n")
    said = []
    with Journal(tmp_path, said.append) as journal:
        assert sorted(journal.statuses) == ["a1", "c333", "d4444"]
    assert "1 lines are damaged" in said[0]
    assert [r["job"] for r in Records.load(tmp_path).rows] == ["a1", "c333", "d4444"]


def test_a_solution_overwritten_by_hand_is_told_when_it_is_asked_for(tmp_path):
    filled(tmp_path, JOBS)
    content = (tmp_path / "solutions.jsonl").read_bytes()
    (tmp_path / "solutions.jsonl").write_bytes(content.replace(b'"job":"b22"', b'"job":"b23"'))
    with pytest.raises(InvalidProblem, match="job b22 at byte"):
        Records.load(tmp_path).told("b22")


def test_the_last_row_of_a_job_counts(tmp_path):
    filled(tmp_path, JOBS)
    with Journal(tmp_path, print) as journal:
        journal.add([(row("a1", "FAILED", reason="no"), None)])
        journal.add([(row("b22", "DIED", seed=7), None)])
        journal.add([(row("mended", seed=7), told("mended"))])
        journal.compact()
    rows = {r["job"]: r for r in Records.load(tmp_path).rows}
    assert rows["a1"]["status"] == "FAILED"
    assert list(rows) == ["a1", "c333", "d4444", "mended"]
    assert Records.load(tmp_path).told("a1") is None
    table = {r["job"]: r["status"] for r in pq.read_table(tmp_path / "results").to_pylist()}
    assert table == {job: r["status"] for job, r in rows.items()}
    with Journal(tmp_path, print) as journal:
        assert "b22" not in journal.statuses
        assert WITHDRAWN not in journal.statuses.values()


def test_a_disk_without_room_leaves_the_files_as_they_were(tmp_path):
    filled(tmp_path, JOBS)
    before = {name: (tmp_path / name).read_bytes() for name in ("journal.jsonl", "solutions.jsonl")}
    code = (
        "import resource, sys\n"
        "from pathlib import Path\n"
        "from prunesolve.campaigns.journal import Journal\n"
        "with Journal(Path(sys.argv[1]), print) as journal:\n"
        "    resource.setrlimit(resource.RLIMIT_FSIZE, (int(sys.argv[2]), resource.RLIM_INFINITY))\n"
        "    try:\n"
        "        journal.add([({'job': 'e', 'status': 'FINISHED'}, {'solution': [0] * int(sys.argv[3])})])\n"
        "    except OSError as error:\n"
        "        print(error.strerror)\n"
    )
    for name, content, size in (
        ("solutions", before["solutions.jsonl"], 5000),
        ("journal", before["journal.jsonl"], 0),
    ):
        command = [sys.executable, "-c", code, str(tmp_path), str(len(content) + 10), str(size)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, env=dict(os.environ))
        assert "large" in done.stdout, (name, done.stdout)
        assert {name: (tmp_path / name).read_bytes() for name in before} == before


def test_a_journal_without_its_folder_s_other_files_is_read(tmp_path):
    filled(tmp_path, JOBS)
    (tmp_path / "solutions.jsonl").unlink()
    records = Records.load(tmp_path)
    assert len(records.rows) == 4
    with pytest.raises(InvalidProblem, match="run the campaign again"):
        records.told("a1")
    with pytest.raises(InvalidProblem, match="expected a folder that `prunesolve batch` wrote"):
        Records.load(tmp_path / "elsewhere")


def test_numbers_of_another_kind_fit_the_table(tmp_path):
    with Journal(tmp_path, print) as journal:
        journal.add([(row("a1", objective=-3, seconds=1), None), (row("b2", objective=-2.5), None)])
        journal.compact()
    assert pq.read_table(tmp_path / "results").column("objective").to_pylist() == [-3.0, -2.5]
    assert json.loads((tmp_path / "journal.jsonl").read_text().splitlines()[0])["objective"] == -3


def test_ctrl_c_waits_until_a_row_is_on_disk(tmp_path, monkeypatch):
    """The signal comes while the disk is busy with the journal: the row stays, then the interrupt is told."""
    with Journal(tmp_path, print) as journal:
        synced = os.fsync

        def disturbed(handle):
            os.kill(os.getpid(), signal.SIGINT)
            synced(handle)

        monkeypatch.setattr(os, "fsync", disturbed)
        with pytest.raises(KeyboardInterrupt):
            journal.add([(row("a1"), told("a1"))])
        monkeypatch.setattr(os, "fsync", synced)
    assert Records.load(tmp_path).told("a1") == told("a1")
