"""The campaign file: what it means, and what is said of mistakes."""

import inspect
import math

import pytest

from prunesolve.campaigns import read_campaign
from prunesolve.campaigns.plan import unfolded
from prunesolve.campaigns.sources import GENERATORS, FileSource, GeneratorSource, source_of
from prunesolve.problems import InvalidProblem, generators, library

GOOD = """\
time_limit = 1.0
seeds = [0, 1]

[[instance]]
path = "*.txt"

[[solver]]
name = "greedy"

[[solver]]
name = "swap-annealing"
threads = 2
"""


@pytest.fixture
def written(tmp_path):
    (tmp_path / "a.txt").write_text("2 1\n0 1 1\n")

    def write(text):
        (tmp_path / "night.toml").write_text(text)
        return tmp_path / "night.toml"

    return write


def test_what_it_says_is_what_is_run(written):
    campaign = read_campaign(written(GOOD))
    assert campaign.name == "night"
    assert [source.name for source in campaign.sources] == ["a.txt"]
    assert [(c.label, s, r) for c, s, r in campaign.runs()] == [
        ("greedy", 0, 0),
        ("greedy", 1, 0),
        ("swap-annealing(threads=2)", 0, 0),
        ("swap-annealing(threads=2)", 1, 0),
    ]
    assert campaign.limits.patience == 62.0
    assert read_campaign(
        written(GOOD.replace("time_limit", "evaluation_limit").replace("1.0", "9"))
    ).limits.patience == (math.inf)


@pytest.mark.parametrize(
    ("old", "new", "line", "said"),
    [
        ("threads = 2", "thread = 2", 12, "thread: unknown option of swap-annealing 'thread': did you mean 'threads'"),
        ("threads = 2", 'threads = "two"', 12, "threads: swap-annealing: expected a number as threads"),
        ('name = "greedy"', 'name = "gredy"', 8, "did you mean 'greedy'"),
        ('name = "greedy"', 'names = "greedy"', 7, "name: expected text, got nothing"),
        ('name = "swap-annealing"\nthreads = 2', 'name = "greedy"', 11, "'greedy' is there twice"),
        ('name = "swap-annealing"\nthreads = 2', 'name = "greedy"\nlabel = "g"', 11, "the same solver as 'greedy'"),
        ("seeds = [0, 1]", "seed = [0, 1]", 2, "seed: unknown key 'seed': did you mean 'seeds'"),
        ("seeds = [0, 1]", "seeds = 3", 2, "seeds: expected a list of whole numbers"),
        ("seeds = [0, 1]", "seeds = [0, -1]", 2, "seeds: expected a list of whole numbers"),
        ("seeds = [0, 1]", "seeds = [1, 1]", 2, "seeds: expected each seed once"),
        ("seeds = [0, 1]", "repeats = 0", 2, "repeats: expected a whole number >= 1, got 0"),
        ("seeds = [0, 1]", 'memory_limit = "2 bananas"', 2, 'memory_limit: expected a size such as "2 GiB"'),
        ("seeds = [0, 1]", 'bound = "yes"', 2, "bound: expected true or false, got 'yes'"),
        ("time_limit = 1.0", "time_limit = 0", 1, "time_limit: expected seconds > 0, got 0"),
        ("time_limit = 1.0", "evaluation_limit = 2.5", 1, "evaluation_limit: expected a whole number"),
        ('path = "*.txt"', 'path = "*.npz"', 5, "path: no file matches '*.npz'"),
        ('path = "*.txt"', 'path = "*.txt"\nformat = "qpk"', 6, "format: unknown format 'qpk': did you mean 'qkp'"),
        ('path = "*.txt"', 'path = "*.txt"\nkeep = "half"', 6, "keep: expected a fraction such as 0.5"),
        ('path = "*.txt"', 'paht = "*.txt"', 4, "path: expected path, library, generator or model, got paht"),
        ('path = "*.txt"', 'library = "resnet21-*"', 5, "library: unknown library instance"),
        ('path = "*.txt"', 'generator = "max_diversty"', 5, "did you mean 'max_diversity'"),
        ('path = "*.txt"', 'generator = "qubo"\nm = 3', 6, "m: unknown key 'm'"),
        ('path = "*.txt"', 'generator = "max_diversity"\nn = 3', 5, "missing a required argument: 'm'"),
        ('path = "*.txt"', 'model = "m:f"\ndata = "d.npz"', 5, "model: expected keep, params or macs, got none"),
        ('path = "*.txt"', 'model = "m:f"\nkeep = 2', 4, "data: expected text, got nothing"),
        ('path = "*.txt"', 'model = "m:f"\ndata = "d"\nkeep = 2\nformulation = "hybrd-qubo"', 8, "'hybrid-qubo'"),
    ],
)
def test_a_mistake_is_told_with_its_line_and_key(written, old, new, line, said):
    assert old in GOOD
    with pytest.raises(InvalidProblem) as raised:
        read_campaign(written(GOOD.replace(old, new)))
    assert f"night.toml, line {line}: " in str(raised.value)
    assert said in str(raised.value)


@pytest.mark.parametrize(
    ("old", "new", "said"),
    [
        ("time_limit = 1.0\n", "", "expected time_limit or evaluation_limit or both, got neither"),
        ('[[instance]]\npath = "*.txt"\n', "", r"instance: expected at least one table \[\[instance\]\]"),
        ("[[instance]]", "[instance]", r"instance: expected at least one table \[\[instance\]\]"),
        ("[[instance]]", "[[instance]", "expected TOML"),
        ('path = "*.txt"', 'path = "*.txt"\n[[instance]]\npath = "a*"', "'a.txt' is there twice"),
    ],
)
def test_what_stands_on_no_line_is_told_too(written, old, new, said):
    with pytest.raises(InvalidProblem, match=said):
        read_campaign(written(GOOD.replace(old, new)))


def test_a_file_that_is_not_there(tmp_path):
    with pytest.raises(InvalidProblem, match="no such file or directory; give a campaign file"):
        read_campaign(tmp_path / "none.toml")


def test_lists_of_a_generator_are_combined(written):
    instance = 'generator = "pruning"\nn = [16, 32]\nseed = [0, 1]\ncoupling = "blocks"\nlayers = 2'
    sources = read_campaign(written(GOOD.replace('path = "*.txt"', instance))).sources
    assert [s.name for s in sources][:2] == [
        "pruning(n=16, seed=0, coupling=blocks, layers=2)",
        "pruning(n=16, seed=1, coupling=blocks, layers=2)",
    ]
    made = sources[3].problem()
    assert made.hash == generators.pruning(32, seed=1, coupling="blocks", layers=2).hash


def test_library_patterns_and_counts(written):
    instance = 'library = "resnet20-*"\nkeep = [4, 0.5]'
    sources = read_campaign(written(GOOD.replace('path = "*.txt"', instance))).sources
    names = [name for name in library.names() if name.startswith("resnet20-")]
    assert [s.name for s in sources] == [f"library:{name}@{keep}" for keep in (4, 0.5) for name in names]
    assert sources[0].problem().k == 4


def test_every_generator_can_be_named():
    public = {name for name, f in vars(generators).items() if inspect.isfunction(f) and not name.startswith("_")}
    assert set(GENERATORS) == {name for name in public if vars(generators)[name].__module__ == generators.__name__}


def test_a_source_survives_the_way_to_a_worker(tmp_path):
    generators.max_diversity(12, 3, seed=1).save(tmp_path / "a.npz")
    for source in (
        FileSource("a", keep=4, path=str(tmp_path / "a.npz")),
        GeneratorSource("g", generator="qubo", arguments={"n": 5}),
    ):
        assert source_of(source.told()) == source
        assert source_of(source.told()).problem().hash == source.problem().hash


def test_digests_are_of_what_decides_the_problem(tmp_path):
    (tmp_path / "a.txt").write_text("1\n1 1\n1 1 5\n")
    (tmp_path / "b.txt").write_text("1\n1 1\n1 1 5\n")
    a, b = (FileSource(name, path=str(tmp_path / name)) for name in ("a.txt", "b.txt"))
    assert a.digest(a.content()) == b.digest(b.content())
    kept = FileSource("a.txt", keep=1, path=a.path)
    second = FileSource("a.txt", index=2, path=a.path)
    other_format = FileSource("a.txt", path=str(tmp_path / "a.coo"))
    assert other_format.digest(a.content()) != a.digest(a.content())
    digests = [s.digest(s.content()) for s in (a, kept, second)] + [a.digest(b"other"), a.unread, b.unread]
    assert len(set(digests)) == 6


def test_files_of_several_instances_unfold(tmp_path):
    (tmp_path / "two.txt").write_text("2\n2 2\n1 1 3\n1 2 -1\n3 1\n2 2 5\n")
    source = FileSource("two.txt", keep=1, path=str(tmp_path / "two.txt"))
    assert [(s.name, s.index, s.keep) for s in unfolded(source)] == [("two.txt:1", 1, 1), ("two.txt:2", 2, 1)]
