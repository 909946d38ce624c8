"""Published figures are those of their records."""

import json
import re
import shutil
import sys

import pytest
import records
import tables
from conftest import ROOT

from cifar_lightning.report.stats import Summary

METRICS = {
    "test/acc": 0.9,
    "name": "speedrun",
    "data": "cifar10",
    "seed": 0,
    "train_seconds": 20.4,
    "device": "AMD EPYC (2 threads)",
    "precision": "bf16-mixed",
    "output_dir": "/home/me/logs/0",
    "overrides": ["experiment=speedrun", "seed=0", "name=runs", "data.root=/data", "output_dir=/home/me/logs"],
    "commit": "e61ebd02d789a92cc9f28fa99e67c0bd17afc474",
    "dirty": False,
}


@pytest.fixture
def results(tmp_path, monkeypatch):
    """An empty folder of records."""
    monkeypatch.setattr(records, "RESULTS", tmp_path / "results")
    return tmp_path / "results"


@pytest.fixture
def run(tmp_path):
    """The folder of a run that has ended, with other metrics where they are given."""

    def ended(number: int, **metrics: object):
        folder = tmp_path / "sweep" / str(number)
        folder.mkdir(parents=True)
        (folder / "metrics.json").write_text(json.dumps({**METRICS, "seed": number, **metrics}))
        return folder

    return ended


@pytest.mark.parametrize("file", tables.made())
def test_what_is_published_is_made_from_the_records(file):
    assert tables.made()[file] == (ROOT / file).read_text(), "python benchmarks/tables.py"


@pytest.mark.parametrize("recipe", tables.files_of_recipes().values())
def test_a_result_line_fits(recipe):
    assert len(tables.result_line(recipe)) <= 120


@pytest.mark.parametrize("document", tables.DOCUMENTS)
def test_no_mean_is_written_by_hand(document):
    text = (ROOT / document).read_text()
    by_hand = re.sub(r"```.*?```", "", tables.MADE.sub("", text), flags=re.DOTALL)
    assert re.findall(r".*\d ± \d.*", by_hand) == []


def test_no_record_holds_a_path_of_a_machine():
    for path in records.RESULTS.glob("*/*/seed*.json"):
        record = json.loads(path.read_text())
        assert records.cleaned(record) == record, path


@pytest.mark.parametrize(
    ("accuracies", "digits", "shown"),
    [
        (Summary(5, 0.54536, 0.01449, 0.5, 0.6), 2, "54.54 ± 1.45 %"),
        (Summary(5, 0.54536, 0.01449, 0.5, 0.6), 1, "54.5 ± 1.4 %"),
        (Summary(1, 0.962, float("nan"), float("nan"), float("nan")), 2, "96.20 %"),
    ],
)
def test_percent(accuracies, digits, shown):
    assert records.percent(accuracies, digits) == shown


def test_runs_become_a_group(results, run):
    for number, acc in enumerate((0.90, 0.92)):
        records.add(run(number, **{"test/acc": acc, "train_seconds": 20.0 + number}), hardware="zen5", is_shared=True)
    (group,) = records.groups()
    assert (group.recipe, group.folder, group.command) == ("speedrun", "zen5", "python train.py experiment=speedrun")
    assert (group.acc.num, group.acc.mean, group.acc.sd) == (2, pytest.approx(0.91), pytest.approx(0.01 * 2**0.5))
    assert (group.seconds, group.commits, group.acc_tta) == ((20.0, 21.0), ("e61ebd0",), None)
    assert group.is_shared
    assert group.is_reproduced


def test_a_record_is_what_was_written_without_the_places_of_files(results, run):
    path = records.add(run(3), hardware="zen5")
    record = json.loads(path.read_text())
    assert path == results / "speedrun" / "zen5" / "seed3.json"
    assert record["overrides"] == ["experiment=speedrun", "seed=0", "name=runs"]
    assert {key: value for key, value in record.items() if key != "overrides"} == {
        key: value
        for key, value in {**METRICS, "seed": 3, "shared": False}.items()
        if key not in ("output_dir", "overrides")
    }


def test_a_record_takes_the_place_of_what_was_published(results, run):
    (results / "speedrun" / "zen5").mkdir(parents=True)
    shutil.copy(ROOT / "benchmarks/results/speedrun/zen4/published.json", results / "speedrun/zen5")
    (published,) = records.groups()
    assert (published.acc_tta.mean, published.acc_tta.sd, published.acc.num) == (0.9406, 0.001, 5)
    assert not published.is_reproduced
    records.add(run(0), hardware="zen5")
    assert records.groups()[0].is_reproduced


@pytest.mark.parametrize(
    ("metrics", "options", "fault"),
    [
        ({"overrides": ["model.weights=/home/me/net"]}, {}, "overrides holds a path of this machine: model.weights="),
        ({"data_note": r"from C:\images"}, {}, "data_note holds a path of this machine"),
        ({}, {"hardware": "abacus"}, "abacus: .* lists these hardware: zen5, zen4"),
        ({}, {"recipe": "slow"}, "slow: .* lists these recipes: tutorial, resnet18"),
        ({"test/acc": "high"}, {}, "metrics.json is not of a run that has ended"),
    ],
)
def test_what_is_no_record_is_refused(results, run, metrics, options, fault):
    with pytest.raises(ValueError, match=fault):
        records.add(run(0, **metrics), **{"hardware": "zen5", **options})
    assert list(results.rglob("*.json")) == []


@pytest.mark.parametrize(
    ("metrics", "fault"),
    [
        ({"overrides": ["experiment=speedrun", "tta=0"]}, "seed1.json has another command: .* tta=0, not"),
        ({"precision": "32-true"}, "seed1.json has another precision: 32-true, not bf16-mixed"),
    ],
)
def test_runs_that_do_not_belong_together_are_no_group(results, run, metrics, fault):
    records.add(run(0), hardware="zen5")
    records.add(run(1, **metrics), hardware="zen5")
    with pytest.raises(ValueError, match=fault):
        records.groups()


def test_of_a_sweep_the_runs_that_have_ended_count(run, tmp_path):
    folders = [run(0), run(2)]
    (tmp_path / "sweep" / "1").mkdir()
    assert records.runs([tmp_path / "sweep"]) == folders
    with pytest.raises(ValueError, match=r"1: there is no metrics\.json of a run that has ended"):
        records.runs([tmp_path / "sweep" / "1"])


@pytest.fixture
def copy(tmp_path, monkeypatch):
    """A copy of all that has made parts; gives exit code and output of the command there."""
    for file in tables.made():
        (tmp_path / file).parent.mkdir(parents=True, exist_ok=True)
        shutil.copy(ROOT / file, tmp_path / file)
    monkeypatch.setattr(tables, "ROOT", tmp_path)

    def command(*arguments: str) -> int:
        monkeypatch.setattr(sys, "argv", ["tables.py", *arguments])
        return tables.main()

    return command


def test_the_check_names_what_is_stale_and_the_command_makes_it(copy, tmp_path, capsys):
    assert copy("--check") == 0
    stale = {"README.md": "<!-- made: tutorial -->", "conf/experiment/speedrun96.yaml": "# TTA accuracy "}
    for file, before in stale.items():
        text = (tmp_path / file).read_text()
        assert before in text
        (tmp_path / file).write_text(text.replace(before, f"{before}99.9 %"))
    assert copy("--check") == 1
    assert capsys.readouterr().out.splitlines() == [f"{file} is stale: python benchmarks/tables.py" for file in stale]
    assert copy() == 0
    assert copy("--check") == 0
    for file in stale:
        assert (tmp_path / file).read_text() == (ROOT / file).read_text()


def test_an_unknown_mark_is_refused(copy, tmp_path, capsys):
    (tmp_path / "README.md").write_text("It gives <!-- made: much --><!-- end -->.")
    assert copy() == 2
    assert capsys.readouterr().err.startswith("error: README.md: made: much: there is no such text; allowed: recipes, ")


def test_fine_tuning_is_compared_by_seed():
    rows = [line.split(" | ") for line in tables.few_images().splitlines() if " % | " in line]
    assert [row[1:4] for row in rows] == [  # by hand, from results/finetune.json
        ["72.64 ± 2.09 %", "5", "| |"],
        ["72.42 ± 1.02 %", "5", "0.22 ± 2.53 points"],
        ["56.22 ± 1.70 %", "5", "16.43 ± 0.89 points"],
    ]


def test_the_log_s_contents_name_every_entry():
    contents, _, entries = (ROOT / "benchmarks" / "LOG.md").read_text().partition("\n## 2")
    headings = re.findall(r"^#{2,3} (?!\d)(.*)$", entries, re.MULTILINE)
    linked = dict(re.findall(r"\[([^\]]+)\]\(#([^)]+)\)", contents))
    assert sorted(linked) == sorted(headings)
    for heading, anchor in linked.items():
        assert anchor == re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-")
