"""Tables of docs/scale.md, and the folders of runs that benchmarks/many_runs.py counts and times."""

import json
import math
import re
import subprocess

import pytest
import records
import scale_tables
import tables
from documents import ROOT, Page
from run_folders import files, multiply, restarted

from cifar_lightning.report.stats import Summary
from cifar_lightning.runs.folder import CONFIG, METRICS, OVERRIDES
from cifar_lightning.runs.jobkeys import KEY

SHORT = (
    *("data=synthetic", "trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu"),
    *("callbacks=none", "logger=none", "data.val_size=20"),
)


def group(recipe, folder, seconds, num=3, is_one_thread=False, is_shared=False):
    """Runs with these seconds of training."""
    acc = Summary(num, 0.9, 0.01, math.nan, math.nan)
    where = recipe, folder, "python train.py", is_one_thread, "cifar10", "32-true", ("abc",)
    return records.Group(*where, acc, None, seconds, is_shared, is_reproduced=True)


def costs(monkeypatch, *groups):
    """The row of each recipe, without its name."""
    monkeypatch.setattr(scale_tables, "groups", lambda: [*groups])
    return {row[0].strip("`"): row[1:] for row in scale_tables.costs("†")[1]}


def test_costs_are_days_of_ten_thousand_runs(monkeypatch):
    rows = costs(
        monkeypatch,
        group("speedrun", "zen4", (432.0, 864.0)),  # 10,000 times half of a hundredth of a day
        group("speedrun", "h200", (8.64, 8.64)),
        group("tutorial", "zen5", (86.4, 86.4), is_one_thread=True),  # two at a time
    )
    assert rows["speedrun"] == ["432 to 864, Zen 4", "50 to 100", "100 to 200", "8.6", "1.0", "10,000", "0.12"]
    assert rows["tutorial"] == ["86, Zen 5", "5.0", "2,000", "not measured", "", "", ""]


def test_seconds_with_nothing_else_running_count_before_those_of_more_seeds(monkeypatch):
    rows = costs(
        monkeypatch,
        group("resnet18", "zen5", (100.0, 100.0), num=9, is_shared=True),
        group("resnet18", "zen3", (300.0, 300.0), num=1),
        group("resnet18", "zen4", (200.0, 200.0), num=2),
        group("resnet18", "h200", (50.0, 50.0), is_shared=True),
    )
    assert rows["resnet18"][0] == "200, Zen 4"
    assert rows["resnet18"][3] == r"50\*"


def test_minutes_to_compose_are_those_beyond_the_command_itself(monkeypatch):
    rounds = {"composed 100": [{"seconds": 22.0}], "restart 100": [{"seconds": s} for s in (3.0, 9.0, 4.0)]}
    monkeypatch.setattr(scale_tables, "recorded", lambda: rounds)
    assert scale_tables.minutes_to_compose() == "30"  # 0.18 s a job


@pytest.mark.parametrize(
    ("num_bytes", "shown"),
    [(0, "0.0 kB"), (9_200, "9.2 kB"), (15_815_803, "15.8 MB"), (119_112_059, "119 MB"), (1.195e12, "1.2 TB")],
)
def test_size(num_bytes, shown):
    assert scale_tables.size(num_bytes) == shown


def test_what_was_not_measured_is_left_out(monkeypatch):
    rounds = [{"seconds": seconds, "load": 0.1} for seconds in (4.0, 9.0, 5.0)]
    busy = [{"seconds": 8.0, "cpu_seconds": 3.0, "load": 5.0}]
    monkeypatch.setattr(scale_tables, "recorded", lambda: {"compare 1000": rounds, "restart 10000": busy})
    header, rows = scale_tables.many_runs()
    assert header == "what | 100 runs | 1,000 runs | 10,000 runs"
    assert rows[0] == ["`python compare.py runs=logs/lr`", "", "5.0 s (4.0 to 9.0)", ""]
    assert rows[1] == ["`python train.py -m ...` again, all jobs done", "", "", r"8.0 s\*, CPU 3.0 s"]


def test_both_languages_have_the_same_figures():
    english, chinese = (
        [re.split(r" *\| *", line)[1:-1] for line in tables.TEXTS[name]().splitlines() if line.startswith("| `")]
        for name in ("recipes in short", "recipes in Chinese")
    )
    assert len(english) == 6
    for ours, theirs in zip(english, chinese, strict=True):
        assert (ours[0], *ours[2:4]) == (theirs[0], *theirs[2:4])
        assert re.findall(r"[\d.,]+\d", ours[4]) == re.findall(r"[\d.,]+\d", theirs[4])


def test_multiplied_runs_are_those_of_a_sweep(command, tmp_path):
    whole = command("train.py", *restarted(tmp_path / "whole", SHORT, 4, 2))
    assert whole.code == 0, whole.err
    alone = command("train.py", "-m", *SHORT, f"output_dir={tmp_path / 'alone'}")
    assert alone.code == 0, alone.err
    made, whole = tmp_path / "made", tmp_path / "whole"
    multiply(tmp_path / "alone" / "0", made, SHORT, 4, 2, has_keys=True)

    def text(path, sweep):
        return path.read_text().replace(str(sweep), "SWEEP")

    for number in map(str, range(4)):
        listed = [
            {entry.path.removeprefix(f"{sweep / number}/") for entry in files(sweep / number)}
            for sweep in (made, whole)
        ]
        assert listed[0] == listed[1]
        for path in (CONFIG, OVERRIDES):
            assert text(made / number / path, made) == text(whole / number / path, whole)
        one, other = (json.loads((sweep / number / METRICS).read_text()) for sweep in (made, whole))
        assert list(one) == list(other)
        assert one["seed"] == other["seed"]


@pytest.mark.parametrize("has_keys", [True, False])
def test_a_sweep_of_multiplied_runs_is_done(command, tmp_path, has_keys):
    alone = command("train.py", "-m", *SHORT, f"output_dir={tmp_path / 'alone'}")
    assert alone.code == 0, alone.err
    sweep = tmp_path / "sweep"
    multiply(tmp_path / "alone" / "0", sweep, SHORT, 4, 2, has_keys=has_keys)
    assert (sweep / "3" / KEY).exists() == has_keys
    outcome = command("train.py", *restarted(sweep, SHORT, 4, 2))
    assert outcome.code == 0, outcome.err
    assert outcome.out.count(" is done already") == 4
    assert ("Launching" in outcome.out) != has_keys
    assert "4 runs, 2 groups" in outcome.out


def test_of_runs_that_have_ended_the_checkpoints_are_deleted_as_shown(tmp_path):
    [block] = Page(ROOT / "docs" / "scale.md").blocks("bash")
    for name in ("ended", "running"):
        (tmp_path / "logs" / "lr" / name / "checkpoints").mkdir(parents=True)
        (tmp_path / "logs" / "lr" / name / "checkpoints" / "last.ckpt").touch()
    (tmp_path / "logs" / "lr" / "ended" / METRICS).touch()
    subprocess.run(["sh", "-c", block.text], cwd=tmp_path, check=True)
    left = [str(path.relative_to(tmp_path / "logs" / "lr")) for path in sorted(tmp_path.rglob("*")) if path.is_file()]
    assert left == ["ended/metrics.json", "running/checkpoints/last.ckpt"]
