"""explain, export and report on what a campaign left."""

import json

import pytest

from prunesolve.campaigns import Records


@pytest.fixture(scope="module")
def done(tmp_path_factory, code):
    import os

    from prunesolve.problems import generators

    from .conftest import Place

    folder = tmp_path_factory.mktemp("done")
    for seed, n in enumerate((20, 30)):
        generators.pruning(n, seed=seed).save(folder / f"prune{n}.npz")
    place = Place(folder, os.environ | {"PYTHONPATH": str(code), "OMP_NUM_THREADS": "1"})
    place.campaign('"greedy"\n"swap-annealing"\n"raises"', head="evaluation_limit = 2000\nseeds = [0, 1]")
    text = (folder / "campaign.toml").read_text()
    (folder / "campaign.toml").write_text(text + '[[instance]]\ngenerator = "max_diversity"\nn = 25\nm = 5\n')
    assert place.batch().returncode == 1
    return place


def test_explain_takes_the_best_of_a_campaign_and_counts_the_others(done):
    told = json.loads(done.run("explain", "prune20.npz", "out", "--json", "--most", 3).stdout)
    rows = [row for row in Records.load(done.out).rows if row["instance"] == "prune20.npz" and row["feasible"]]
    assert told["facts"]["objective"] == pytest.approx(min(row["objective"] for row in rows), abs=1e-9)
    assert told["facts"]["stability"]["others"] == len(rows) - 1 == 3
    assert len(told["rows"]) == 3


def test_explain_takes_result_files_too(done):
    done.run("solve", "prune30.npz", "--solver", "greedy", "--out", "one.json")
    done.run("solve", "prune30.npz", "--solver", "swap-annealing", "--evaluation-limit", 500, "--out", "two.json")
    said = done.run("explain", "prune30.npz", "one.json", "two.json")
    assert said.returncode == 0
    assert "1 other result" in said.stdout


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (("prune30.npz", "none.json"), "no such file"),
        (("library:mlp-fc3-fisher-keep30", "out"), "the campaign has none"),
        (("prune30.npz", "."), "expected a folder that `prunesolve batch` wrote"),
    ],
)
def test_explain_refuses_what_it_cannot_explain(done, arguments, said):
    told = done.run("explain", *arguments)
    assert told.returncode == 2
    assert said in told.stderr


@pytest.mark.parametrize("form", ["qoblib", "sampleset", "results"])
def test_export_writes_every_form(done, form, tmp_path):
    told = done.run("export", "out", "--to", form, "--out", tmp_path / form)
    assert told.returncode == 0, told.stderr
    assert any((tmp_path / form).rglob("*.*"))


def test_an_exported_result_is_what_check_takes(done, tmp_path):
    row = next(r for r in Records.load(done.out).rows if r["instance"] == "prune20.npz" and r["feasible"])
    done.run("export", "out", "--to", "results", "--out", tmp_path / "results", "--job", row["job"])
    (file,) = (tmp_path / "results").iterdir()
    assert done.run("check", "prune20.npz", file).stdout.startswith("holds")


def test_export_refuses_a_job_that_is_none(done, tmp_path):
    told = done.run("export", "out", "--to", "results", "--out", tmp_path / "results", "--job", "nothing")
    assert told.returncode == 2
    assert not (tmp_path / "results").exists()


def test_an_instance_is_made_again_from_where_it_came_from(done):
    records = Records.load(done.out)
    hashes = {row["instance"]: row["instance_hash"] for row in records.rows if row["instance_hash"]}
    assert len(hashes) == 3
    assert {name: records.problem(name).hash for name in hashes} == hashes


def test_report_writes_a_page_with_its_tables(done, tmp_path):
    told = done.run("report", "out", "--out", tmp_path / "page.html")
    assert told.returncode == 0, told.stderr
    page = (tmp_path / "page.html").read_text(encoding="utf-8")
    assert "ZeroDivisionError" in page
    assert list(tmp_path.rglob("*.csv"))


def test_report_of_no_campaign_is_refused(done, tmp_path):
    assert done.run("report", tmp_path).returncode == 2
