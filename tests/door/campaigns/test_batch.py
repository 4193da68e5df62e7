"""Campaigns from end to end, in processes as a user starts them."""

import json
import os
import platform
import random
import signal
import subprocess
import sys
import time

import pyarrow.parquet as pq
import pytest

from prunesolve import solvers
from prunesolve.campaigns import Records
from prunesolve.problems import generators
from prunesolve.problems.readers import read

from .conftest import answers, journal, until

TWO = '"greedy"\n"swap-annealing"'


def test_rows_are_those_of_single_runs(place):
    place.campaign(TWO)
    done = place.batch("--workers", 2)
    assert done.returncode == 0, done.stderr
    records = Records.load(place.out)
    rows = {(r["instance"], r["solver"], r["seed"]): r for r in records.rows}
    assert len(rows) == 3 * 2 * 2
    for (instance, solver, seed), row in rows.items():
        problem = read(place.folder / instance)
        single = solvers.get(solver).solve(problem, seed=seed, evaluation_limit=300)
        assert (row["objective"], row["status"], row["evaluations"]) == (
            single.objective,
            str(single.status),
            single.evaluations,
        )
        # easy instances end alike whatever the seed, so that the seed itself is looked at
        assert records.told(row["job"])["seed"] == seed
        assert row["instance_hash"] == problem.hash
        assert row["host"] == platform.node()
        assert row["feasible"]


def test_the_folder_is_read_with_pyarrow_and_json_alone(place):
    place.campaign(TWO)
    place.batch()
    table = pq.read_table(place.out / "results").to_pylist()
    lines = journal(place.out)
    assert [r["objective"] for r in table] == [line["objective"] for line in lines]
    assert json.loads((place.out / "environment.json").read_text())["versions"]["prunesolve"]
    assert (place.out / "campaign.toml").read_text() == (place.folder / "campaign.toml").read_text()
    assert "journal.jsonl" in (place.out / "README.txt").read_text()
    solutions = (place.out / "solutions.jsonl").read_bytes()
    for line in lines:
        start, length = line["at"]
        assert json.loads(solutions[start : start + length])["job"] == line["job"]


def test_a_solution_is_what_check_takes(place):
    place.campaign('"greedy"')
    place.batch()
    records = Records.load(place.out)
    row = records.rows[0]
    (place.folder / "claim.json").write_text(json.dumps(records.told(row["job"])))
    assert place.run("check", row["instance"], "claim.json").stdout.startswith("holds")


def test_the_same_command_again_does_nothing(place):
    place.campaign(TWO)
    place.batch()
    before = journal(place.out)
    again = place.batch()
    assert "12 of 12 jobs done, 0 now" in again.stdout
    assert journal(place.out) == before


def test_what_is_added_to_the_file_is_all_that_is_done(place):
    place.campaign('"greedy"')
    place.batch()
    place.campaign('"greedy"\n"swap-tabu"')
    assert "12 of 12 jobs done, 6 now" in place.batch().stdout
    assert len(Records.load(place.out).rows) == 12


def test_a_renamed_file_is_the_same_instance(place):
    place.campaign('"greedy"')
    place.batch()
    (place.folder / "div20.npz").rename(place.folder / "renamed.npz")
    assert "0 now" in place.batch().stdout


def test_answers_do_not_hang_on_the_number_of_workers(place):
    place.campaign('"greedy"\n"swap-annealing"\n"auto"\n"simulated-annealing"')
    for count in (1, 2, 3):
        assert place.batch("--workers", count, out=place.folder / str(count)).returncode == 0
    one, two, three = (answers(place.folder / str(count)) for count in (1, 2, 3))
    assert len(one) == 24
    assert one == two == three


@pytest.mark.slow
def test_killed_at_random_moments_it_ends_with_the_rows_of_an_undisturbed_run(place):
    place.campaign(TWO, head="evaluation_limit = 100000\nseeds = [0, 1, 2, 3, 4]\nrepeats = 10")
    place.batch("--workers", 2, out=place.folder / "undisturbed")
    rng = random.Random(0)
    file, kills = place.out / "journal.jsonl", 0

    def written():
        return file.read_bytes().count(b"\n") if file.exists() else 0

    while kills < 20:
        process = place.start("batch", "campaign.toml", "--out", place.out, "--workers", 2)
        # some sessions end before they have begun, the others in the middle of a job, of a row, or between two
        enough = written() + rng.choice([0, 1, 2, 3, 4])
        until(lambda enough=enough, process=process: written() >= enough or process.poll() is not None)
        time.sleep(rng.uniform(0.0, 0.02))
        process.kill()
        process.communicate()
        kills += 1
    assert 0 < written() < 300
    done = place.batch("--workers", 2)
    assert done.returncode == 0, done.stderr
    assert answers(place.out) == answers(place.folder / "undisturbed")
    assert len({line["job"] for line in journal(place.out)}) == len(journal(place.out)) == 300
    assert pq.read_table(place.out / "results").num_rows == 300


def test_workers_end_with_a_killed_campaign(place):
    import psutil

    place.campaign('"sleeps"')
    process = place.start("batch", "campaign.toml", "--out", place.out, "--workers", 2)
    parent = psutil.Process(process.pid)
    until(lambda: len(parent.children()) == 2)
    children = parent.children()
    process.kill()
    process.communicate()
    # one that nobody waits for stays a zombie
    until(lambda: not any(c.is_running() and c.status() != psutil.STATUS_ZOMBIE for c in children), seconds=20)


@pytest.mark.parametrize("sent", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_stops_it_and_the_same_command_goes_on(place, sent):
    place.campaign('"greedy"\n"sleeps"')
    process = place.start("batch", "campaign.toml", "--out", place.out, "--workers", 2)
    until(lambda: (place.out / "journal.jsonl").exists() and (place.out / "journal.jsonl").stat().st_size)
    process.send_signal(sent)
    out, err = process.communicate(timeout=30)
    assert process.returncode == 130, err
    assert "the same command goes on" in err
    assert "Traceback" not in err
    rows = len(journal(place.out))
    assert pq.read_table(place.out / "results").num_rows == rows > 0
    place.campaign('"greedy"')
    assert f"{6 - rows} now" in place.batch().stdout


def test_solvers_that_misbehave_are_rows_and_the_others_go_on(place):
    head = 'evaluation_limit = 300\nkill_after = 3.0\nmemory_limit = "600 MiB"'
    place.campaign('"raises"\n"sleeps"\n"eats"\n"exits"\n"talks"\n"dynamic-programming"\n"greedy"', head, "div20.npz")
    done = place.batch("--workers", 2)
    assert done.returncode == 1
    rows = {row["solver"]: row for row in Records.load(place.out).rows}
    statuses = {solver: row["status"] for solver, row in rows.items()}
    assert statuses == {
        "raises": "FAILED",
        "sleeps": "TIMED_OUT",
        "eats": "OUT_OF_MEMORY",
        "exits": "DIED",
        "talks": "FINISHED",
        "dynamic-programming": "FAILED",
        "greedy": "FINISHED",
    }
    assert "ZeroDivisionError: on purpose" in rows["raises"]["reason"]
    assert "no answer after 3" in rows["sleeps"]["reason"]
    assert rows["eats"]["peak_mib"] > 600
    assert "exit code 7" in rows["exits"]["reason"]
    assert "takes LevelChoice" in rows["dynamic-programming"]["reason"]
    for solver in ("raises", "sleeps", "eats", "exits"):
        assert f"{solver}, seed 0: {statuses[solver]}" in done.stderr
    assert "this is no JSON" in (place.out / "workers.log").read_text()


def test_what_a_killed_solver_had_started_ends_with_it(place):
    import psutil

    place.campaign('"spawns"', "evaluation_limit = 300\nkill_after = 2.0", "div20.npz")
    assert place.batch().returncode == 1
    child = int((place.folder / "child.pid").read_text())
    until(lambda: not psutil.pid_exists(child) or psutil.Process(child).status() == psutil.STATUS_ZOMBIE, seconds=10)


def test_a_job_whose_worker_was_lost_is_tried_once_more(place):
    place.campaign('"falters"', "evaluation_limit = 300", "div20.npz")
    done = place.batch("--workers", 1)
    assert done.returncode == 0, done.stderr
    assert "ended with exit code 9; it is tried once more" in done.stderr
    assert [row["status"] for row in Records.load(place.out).rows] == ["FINISHED"]


def test_failed_jobs_are_run_again_on_request_only(place, code):
    place.campaign('"raises"\n"greedy"')
    place.batch()
    once_more = place.batch()
    assert once_more.returncode == 1
    assert "0 now; 6 without a result, --retry runs them again" in once_more.stdout
    again = place.batch("--retry")
    assert "6 now; 6 without a result" in again.stdout
    assert len(journal(place.out)) == 18
    assert pq.read_table(place.out / "results").num_rows == len(Records.load(place.out).rows) == 12


def test_an_instance_that_cannot_be_read_fails_alone_and_is_solved_once_it_can(place):
    (place.folder / "broken.npz").write_bytes((place.folder / "div20.npz").read_bytes()[:100])
    place.campaign('"greedy"')
    done = place.batch()
    assert done.returncode == 1
    rows = {(row["instance"], row["seed"]): row for row in Records.load(place.out).rows}
    assert "truncated" in rows["broken.npz", 0]["reason"]
    assert {key for key, row in rows.items() if row["status"] == "FAILED"} == {("broken.npz", 0), ("broken.npz", 1)}
    assert len(rows) == 8
    generators.max_diversity(25, 6, seed=9).save(place.folder / "broken.npz")
    mended = place.batch()
    assert mended.returncode == 0
    assert "8 of 8 jobs done, 2 now" in mended.stdout
    assert [row["status"] for row in Records.load(place.out).rows] == 8 * ["FINISHED"]
    assert pq.read_table(place.out / "results").num_rows == 8
    lines = journal(place.out)
    assert "0 now" in place.batch().stdout
    assert journal(place.out) == lines


def test_a_file_that_was_away_is_solved_when_it_is_back_and_its_failure_forgotten(place):
    (place.folder / "list.txt").symlink_to(place.folder / "away.txt")
    place.campaign('"greedy"', path="list.txt")
    assert place.batch().returncode == 2
    (place.folder / "away.txt").write_text("3 3\n0 1 1\n0 2 1\n1 2 1\n")
    (place.folder / "away.txt").chmod(0)
    if os.access(place.folder / "away.txt", os.R_OK):
        pytest.skip("this user may read every file")
    assert place.batch().returncode == 1
    (place.folder / "away.txt").chmod(0o644)
    assert place.batch().returncode == 0
    assert {row["status"] for row in Records.load(place.out).rows} == {"FINISHED"}


def test_a_file_that_holds_several_instances_is_all_of_them(place):
    (place.folder / "two.txt").write_text("2\n2 2\n1 1 3\n1 2 -1\n3 1\n2 2 5\n")
    place.campaign('"greedy"', head="evaluation_limit = 50", path="two.txt")
    assert place.batch().returncode == 0
    rows = {row["instance"]: row for row in Records.load(place.out).rows}
    assert {name: row["native_objective"] for name, row in rows.items()} == {"two.txt:1": 3.0, "two.txt:2": 5.0}
    assert {row["sense"] for row in rows.values()} == {"maximise"}


def test_a_copy_under_another_name_is_solved_once(place):
    (place.folder / "copy.npz").write_bytes((place.folder / "div20.npz").read_bytes())
    place.campaign('"greedy"')
    done = place.batch()
    assert "div20.npz: the same instance as copy.npz, solved once" in done.stderr
    assert "6 of 6 jobs done" in done.stdout


def test_a_network_is_measured_once_and_encoded_for_every_budget(place):
    (place.folder / "make.py").write_text(
        "from prunesolve.demo_networks import load_network\n\ndef trained():\n    return load_network('classify')\n"
    )
    (place.folder / "data.py").write_text(
        "import numpy as np\nfrom prunesolve.demo_networks import digits\n"
        "x, y = digits('train')\nnp.savez('data.npz', inputs=x[:64], targets=y[:64])\n"
    )
    place.campaign('"greedy"', head="evaluation_limit = 5000", path="div20.npz")
    text = (place.folder / "campaign.toml").read_text()
    network = '[[instance]]\nmodel = "make.py:trained"\ndata = "data.npz"\nkeep = [0.5, 8]\n'
    (place.folder / "campaign.toml").write_text(text + network)
    subprocess.run([sys.executable, "data.py"], cwd=place.folder, env=place.environment, check=True)
    done = place.batch()
    assert done.returncode == 0, done.stderr
    assert done.stderr.count("measuring") == 1
    rows = {row["instance"]: row for row in Records.load(place.out).rows}
    assert rows["trained-reconstruction-keep8"]["kept"] == 8
    half = rows["trained-reconstruction-keep0.5"]
    assert half["kept"] == int(0.5 * half["n"] + 0.5)
    assert place.batch().stderr.count("measuring") == 0


def test_two_sessions_in_one_folder_are_refused(place):
    place.campaign('"sleeps"')
    first = place.start("batch", "campaign.toml", "--out", place.out)
    until(lambda: (place.out / "environment.json").exists())
    second = place.batch()
    first.kill()
    first.communicate()
    assert second.returncode == 2
    assert "another `prunesolve batch` is writing" in second.stderr


def test_a_foreign_folder_is_refused_and_left_alone(place):
    place.campaign('"greedy"')
    place.out.mkdir()
    (place.out / "precious.txt").write_text("mine")
    done = place.batch()
    assert done.returncode == 2
    assert "other files" in done.stderr
    assert [p.name for p in place.out.iterdir()] == ["precious.txt"]


@pytest.mark.slow
def test_a_disk_that_fills_is_waited_for(place):
    """The limit on a file's size stands for the disk: writing beyond it fails as on a full one, until it is lifted."""
    import resource

    place.campaign(TWO, head="evaluation_limit = 300\nseeds = [0, 1, 2, 3]")
    process = place.start("batch", "campaign.toml", "--out", place.out, "--workers", 1)
    # room for about five rows
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (4000, resource.RLIM_INFINITY))
    said = ""
    while "cannot be written" not in said:
        line = process.stderr.readline()
        assert line, said
        said += line
    assert 0 < len(journal(place.out)) < 24
    resource.prlimit(process.pid, resource.RLIMIT_FSIZE, (resource.RLIM_INFINITY, resource.RLIM_INFINITY))
    out, err = process.communicate(timeout=120)
    assert process.returncode == 0, err
    assert "24 of 24 jobs done" in out
    assert len(journal(place.out)) == len(answers(place.out)) == 24


def test_a_table_cut_by_hand_is_written_again(place):
    place.campaign('"greedy"')
    place.batch()
    file = place.out / "results" / "results.parquet"
    whole = pq.read_table(file).to_pylist()
    file.write_bytes(file.read_bytes()[:50])
    assert "0 now" in place.batch().stdout
    assert pq.read_table(file).to_pylist() == whole


def test_solutions_cut_by_hand_are_solved_again_and_said(place):
    place.campaign('"greedy"')
    place.batch()
    before = answers(place.out)
    file = place.out / "solutions.jsonl"
    file.write_bytes(file.read_bytes()[:-30])
    done = place.batch()
    assert "are cut off" in done.stderr
    assert "1 solutions are missing; their jobs are done again" in done.stderr
    assert "1 now" in done.stdout
    assert answers(place.out) == before


def test_a_terminal_shows_progress_and_a_line_for_each_failure(place):
    import pty

    place.campaign('"greedy"\n"raises"\n"swap-annealing"')
    mine, theirs = pty.openpty()
    command = [sys.executable, "-m", "prunesolve.cli", "batch", "campaign.toml", "--out", "out", "--workers", "1"]
    environment = place.environment | {"COLUMNS": "120", "TERM": "xterm"}
    process = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=theirs, env=environment, cwd=place.folder)
    os.close(theirs)
    shown = b""
    while True:
        try:
            part = os.read(mine, 65536)
        except OSError:
            # how Linux says that nobody writes any more
            break
        if not part:
            break
        shown += part
    os.close(mine)
    said = process.communicate()[0].decode()
    text = shown.decode()
    assert process.returncode == 1, text
    assert "18 of 18 jobs done" in said
    assert "of 18" in text
    assert text.count("ZeroDivisionError: on purpose") == 6
    assert "running 1, failed" in text
