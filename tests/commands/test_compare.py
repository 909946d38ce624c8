"""compare.py over folders of runs: what it says, what it writes, what it refuses."""

import csv
import html
import logging
import re
import shlex
import shutil
import statistics

import pytest
from browsing import browser, requested, visit
from generated import failed, finished, started
from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

from cifar_lightning.commands import compare as compare_module
from cifar_lightning.commands.compare import compare, compare_sweep
from cifar_lightning.config.schema import compose
from cifar_lightning.errors import UserError
from cifar_lightning.locks import held
from cifar_lightning.runs.folder import LOCK

__all__ = ["browser"]

WRITTEN = {"compare.md", "compare.html", "compare.csv", "pairs.csv", "runs.csv"}
HOSTILE = "model=<b>|`*$(rm)\N{RIGHT-TO-LEFT OVERRIDE}"


@pytest.fixture
def sweep(tmp_path):
    """Three groups: of three seeds, of three with one that failed, and of one that has not finished."""
    accuracies = {"0.1": ([0.5, 0.52, 0.54], [0.6, 0.61, 0.62]), "0.2": ([0.6, 0.62, 0.65], [0.7, 0.71, 0.72])}
    folder, number = tmp_path / "sweep", 0
    for lr, (test, val) in accuracies.items():
        for seed in range(3):
            overrides = (f"optimizer.lr={lr}", "data.val_size=5")
            finished(folder / str(number), *overrides, seed=seed, test=test[seed], val=val[seed])
            number += 1
    failed(folder / "6", "optimizer.lr=0.2", "data.val_size=5", "seed=3", reason="out of luck")
    started(folder / "7", "optimizer.lr=0.3", "data.val_size=5", "seed=0")
    return folder


def test_a_sweep_is_compared(command, sweep):
    outcome = command("compare.py", "runs=sweep")
    assert (outcome.code, outcome.err) == (0, "")
    lines = outcome.out.splitlines()
    assert lines[0] == "Comparison of tutorial: 8 runs, 3 groups"
    rows = [[cell.strip() for cell in line.split("│")[1:-1]] for line in lines if line.startswith("│")]
    half = 4.302653 * statistics.stdev([0.6, 0.62, 0.65]) / 3**0.5
    mean = f"62.33 ± {100 * half:.2f}"
    assert rows[1] == ["optimizer.lr=0.2", "3", "71.00", mean, "2.52", "60.00 – 65.00", "11.0", "1 failed"]
    assert rows[3] == ["optimizer.lr=0.3", "0", *["–"] * 5, "1 unfinished"]
    assert rows[5][:4] == ["optimizer.lr=0.2", "optimizer.lr=0.1", "3", "+10.33 ± 1.43"]
    assert "result    optimizer.lr=0.2 is best on the validation images: 71.00 % " in outcome.out
    assert "note      ± is the 95 % interval of the mean over seeds\n" in outcome.out
    assert lines[-2:] == ["page      sweep/compare/compare.html", "tables    sweep/compare/compare.md"]
    files = {path.name for path in (sweep / "compare").iterdir()}
    assert files >= WRITTEN
    assert "All runs: data.val\\_size=5" in (sweep / "compare" / "compare.md").read_text()


def test_comparing_again_replaces_what_was_written(command, sweep):
    command("compare.py", "runs=sweep")
    finished(sweep / "8", "optimizer.lr=0.3", "data.val_size=5", seed=0, test=0.9, val=0.9)
    assert command("compare.py", "runs=sweep").code == 0
    assert "optimizer.lr=0.3 is best" in (sweep / "compare" / "compare.md").read_text()
    assert len(list((sweep / "compare").glob("events.out.tfevents.*"))) == 1
    assert "9 runs" in command("compare.py", "runs=sweep").out  # what it writes is no run


def test_tensorboard_reads_text_and_plot_and_no_hyper_parameters(command, sweep):
    command("compare.py", "runs=sweep")
    events = EventAccumulator(str(sweep / "compare")).Reload()
    tags = events.Tags()
    assert (tags["scalars"], tags["images"], tags["tensors"]) == ([], ["comparison/runs"], ["comparison/text_summary"])
    [text] = events.Tensors("comparison/text_summary")
    assert text.tensor_proto.string_val[0].decode() == (sweep / "compare" / "compare.md").read_text()
    [image] = events.Images("comparison/runs")
    assert image.width > image.height > 100


def test_a_baseline_is_compared_with_the_others(command, sweep):
    outcome = command("compare.py", "runs=sweep", "baseline=optimizer.lr=2e-1")
    assert outcome.code == 0, outcome.err
    assert "│ optimizer.lr=0.1 │ optimizer.lr=0.2 │ 3 │ -10.33 ± 1.43 │" in outcome.out
    refusal = command("compare.py", "runs=sweep", "baseline=optimizer.lr=7").refusal
    assert refusal.startswith("baseline=optimizer.lr=7: no group has that; name one of: optimizer.lr=0.1, ")


def test_another_metric(command, sweep):
    outcome = command("compare.py", "runs=sweep", "metric=train_seconds", "output_dir=out")
    assert outcome.code == 0, outcome.err
    assert "differences in train_seconds" in outcome.out
    refusal = command("compare.py", "runs=sweep", "metric=test/ac").refusal
    assert refusal == "metric=test/ac: no run has a number of that name: did you mean test/acc?"


def test_several_places_are_compared_below_logs(command, sweep, tmp_path):
    outcome = command("compare.py", "runs=[sweep/0,sweep/3/metrics.json,sweep/4]")
    assert outcome.code == 0, outcome.err
    assert outcome.out.startswith("Comparison of tutorial: 3 runs, 2 groups\n")
    [folder] = (tmp_path / "logs" / "compare").iterdir()
    assert {path.name for path in folder.iterdir()} >= WRITTEN
    assert "2 runs, 1 group\n" in command("compare.py", "runs=sweep/[01]", "output_dir=out").out
    assert "1 run, 1 group\n" in command("compare.py", "runs=sweep/0", "output_dir=out").out


def test_names_that_shells_and_hydra_have_their_own_ideas_of(command, sweep, tmp_path):
    folder = tmp_path / "my 'sweep' (1), a=b"
    sweep.rename(folder)
    assert command("compare.py", f"runs={folder.name}").code == 0
    text = re.search("<pre>(.*)</pre>", (folder / "compare" / "compare.html").read_text())[1]
    python, script, typed = shlex.split(html.unescape(text))
    assert (python, script) == ("python", "compare.py")
    assert command(script, typed).out.endswith("tables    my 'sweep' (1), a=b/compare/compare.md\n")


@pytest.mark.parametrize(
    "asked",
    [
        ["runs=sweep", "metric=val/acc", "baseline=optimizer.lr=2e-1"],
        ["runs=['my \\'sweep\\' (1), a=b',sweep]", "by=[folder,commit]"],
        ["runs=sweep", "by=folder"],
    ],
)
def test_the_page_says_how_to_compare_the_same_again(command, sweep, tmp_path, asked):
    shutil.copytree(sweep, tmp_path / "my 'sweep' (1), a=b")
    first = command("compare.py", *asked, "output_dir=out")
    text = re.search("<pre>(.*)</pre>", (tmp_path / "out" / "compare.html").read_text())[1]
    _, script, *typed = shlex.split(html.unescape(text))
    assert (first.code, command(script, *typed, "output_dir=out").out) == (0, first.out)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ([], "runs=FOLDER compares runs, ckpt=[a.ckpt,b.ckpt] checkpoints on the same images: one of them is missing"),
        (["runs="], "runs= is empty: write runs=FOLDER"),
        (["runs=[]"], "runs must be a folder, a pattern, a file or a list of these, got []"),
        (["runs=nowhere"], "runs=nowhere: there is no such file or folder"),
        (["runs=empty"], "runs=empty: no run is there"),
        (["runs=broken"], "runs=broken: no run is there (broken: it holds no metrics by name)"),
        (["-m", "runs=empty"], "-m: compare.py does one thing at a time"),
        (["runs=sweep", "by={a:1}"], "by must be folder, a key of metrics.json, or a list of these, got {'a': 1}"),
        (["runs=sweep", "metric="], "metric must not be empty"),
        (["runs=sweep", "output_dir=sweep/0"], "output_dir={}/sweep/0 holds a run already"),
        (["runs=sweep", "output_dir=foreign"], "output_dir={}/foreign holds compare.csv, which would be written over"),
        (["runs=sweep", "output_dir=sweep/7"], "output_dir={}/sweep/7 holds a run that has begun: name another folder"),
        (["runs=sweep", "by=comit"], "by=comit: no run has a key of that name: did you mean commit?"),
        (["runs=sweep", "metrics=test/acc"], "metrics=test/acc: there is no key metrics: did you mean metric?"),
    ],
)
def test_what_is_refused(command, sweep, tmp_path, arguments, message):
    for name in ("empty", "broken", "foreign"):
        (tmp_path / name).mkdir()
    (tmp_path / "broken" / "metrics.json").write_text("[]")
    (tmp_path / "foreign" / "compare.csv").write_text("mine")
    assert command("compare.py", *arguments).refusal.startswith(message.replace("{}", str(tmp_path)))
    assert (tmp_path / "foreign" / "compare.csv").read_text() == "mine"


def test_event_files_of_others_are_left_alone(command, sweep, tmp_path):
    place = tmp_path / "out" / "events.out.tfevents.123.host"
    place.parent.mkdir()
    place.write_text("mine")
    for _ in range(2):
        assert command("compare.py", "runs=sweep", "output_dir=out").code == 0
        assert place.read_text() == "mine"
        assert len(list(place.parent.glob("events.out.tfevents.*"))) == 2


def test_runs_without_the_metric_are_named(command, tmp_path):
    for lr, reached in (("0.1", [0]), ("0.2", [0, 1, 2])):
        for seed in range(3):
            more = {"seconds_to_val_acc": {"0.94": 10.0 + seed}} if seed in reached else {}
            finished(tmp_path / "sweep" / f"{lr}-{seed}", f"optimizer.lr={lr}", seed=seed, **more)
    outcome = command("compare.py", "runs=sweep", "metric=seconds_to_val_acc.0.94")
    assert "note      optimizer.lr=0.1: 2 of 3 finished runs have no seconds_to_val_acc.0.94\n" in outcome.out
    assert "optimizer.lr=0.1 is best by seconds_to_val_acc.0.94" in outcome.out
    finished(tmp_path / "sweep" / "3", "optimizer.lr=0.3", seed=0)
    refusal = command("compare.py", "runs=sweep", "metric=seconds_to_val_acc.0.94", "baseline=optimizer.lr=0.3").refusal
    assert refusal.startswith("baseline=optimizer.lr=0.3: it has no seconds_to_val_acc.0.94; name another group or ")


@pytest.mark.parametrize(
    ("more", "words"),
    [
        ({"num_test_images": 5}, "tested"),
        ({"fingerprint": {"test": "2"}}, "tested"),
        ({"fingerprint": {"val": "2"}}, "validated"),
        ({"num_val_images": 5}, "validated"),
    ],
)
def test_figures_of_different_images_are_not_alike(command, tmp_path, more, words):
    usual = {"num_test_images": 10, "num_val_images": 10, "fingerprint": {"test": "1", "val": "1"}}
    finished(tmp_path / "sweep" / "0", "optimizer.lr=0.1", val=0.5, **usual)
    finished(tmp_path / "sweep" / "1", "optimizer.lr=0.2", val=0.6, **usual | more)
    notes = [line for line in command("compare.py", "runs=sweep").out.splitlines() if " different images" in line]
    assert notes == [f"note      The runs were {words} on different images: a difference may be one of the images."]


def test_a_broken_file_is_left_out_and_named(command, sweep):
    (sweep / "0" / "metrics.json").write_text("{")
    outcome = command("compare.py", "runs=sweep")
    assert outcome.code == 0
    assert "note      left out: sweep/0: Expecting property name" in outcome.out
    assert "left out: sweep/0" in (sweep / "compare" / "compare.html").read_text()


def test_a_seed_that_stands_twice_is_named(command, sweep):
    shutil.copytree(sweep / "0", sweep / "again")
    outcome = command("compare.py", "runs=sweep")
    note = "note      optimizer.lr=0.1: seed 0 stands 2 times, and the first counts: sweep/0, sweep/again"
    assert note in outcome.out


def test_folders_of_sweeps_may_make_groups(command, sweep, tmp_path):
    shutil.copytree(sweep, tmp_path / "later")
    outcome = command("compare.py", "runs=[sweep,later]", "by=folder", "output_dir=out")
    assert outcome.code == 0, outcome.err
    with (tmp_path / "out" / "pairs.csv").open() as file:
        pairs = [(row["first"], row["second"], row["first minus second"]) for row in csv.DictReader(file)]
    assert ("optimizer.lr=0.1 folder=sweep", "optimizer.lr=0.1 folder=later", "0.0") in pairs


def test_a_run_that_is_going_on(command, sweep):
    with held(sweep / "7" / LOCK):
        assert "1 running" in command("compare.py", "runs=sweep").out


def test_from_python(sweep, tmp_path, caplog):
    cfg = compose(f"runs={sweep}", f"output_dir={tmp_path / 'out'}", config_name="compare")
    comparison = compare(cfg)
    assert comparison.rows[0].group.label == "optimizer.lr=0.2"
    assert comparison.pairs[0].test.difference.mean == pytest.approx(0.31 / 3)
    assert caplog.messages[0].startswith("Comparison of tutorial")
    with pytest.raises(UserError, match="runs=FOLDER is missing"):
        compare(compose(config_name="compare"))


# At the end of a sweep

SHORT = (
    *("trainer.max_epochs=1", "trainer.limit_train_batches=2", "trainer.accelerator=cpu"),
    *("callbacks=none", "logger=none", "output_dir=sweep"),
)


def test_a_sweep_of_one_job_has_nothing_to_compare(command, tmp_path):
    outcome = command("train.py", "-m", *SHORT, "seeds=1", tiny=True)
    assert outcome.code == 0, outcome.err
    assert "Comparison" not in outcome.out
    assert not (tmp_path / "sweep" / "compare").exists()


def test_a_sweep_that_cannot_be_compared_has_not_failed(command, tmp_path, monkeypatch):
    (tmp_path / "sweep").mkdir()
    (tmp_path / "sweep" / "compare").write_text("a file")
    outcome = command("train.py", "-m", *SHORT, "seeds=2", tiny=True)
    assert outcome.code == 0
    assert outcome.err.startswith("warning: the jobs of ")
    assert "sweep are not compared: " in outcome.err
    assert outcome.err.count("\n") == 1
    (tmp_path / "sweep" / "compare").unlink()
    monkeypatch.setattr(compare_module, "compared", lambda *args: 1 / 0)
    outcome = command("train.py", "-m", *SHORT, "seeds=2", tiny=True)
    assert outcome.code == 0
    assert "are not compared: ZeroDivisionError: division by zero" in outcome.err


def test_a_sweeper_that_optimises(command, tmp_path):
    sweeper = "hydra.sweeper._target_=hydra_plugins.optimiser.Optimiser"
    outcome = command("train.py", "-m", *SHORT, sweeper, "data.val_size=20", "optimizer.lr=0.001,0.01", tiny=True)
    assert outcome.code == 0, outcome.err
    assert "Comparison of tutorial: 2 runs, 2 groups" in outcome.out
    assert "so a test needs more seeds for all" in outcome.out


def test_other_commands_compare_nothing(command, exported_run, tmp_path):
    typed = (f"ckpt={exported_run / 'checkpoints' / 'last.ckpt'}", f"output_dir={tmp_path / 'out'}")
    outcome = command("evaluate.py", "-m", *typed, "tta=0,1", tiny=True)
    assert outcome.code == 0, outcome.err
    assert "Comparison" not in outcome.out


def test_jobs_of_processes_of_their_own_are_compared_by_their_files(sweep, caplog):
    compare_sweep(sweep)
    assert caplog.messages[0].startswith("Comparison of tutorial: 8 runs, 3 groups\n")
    assert logging.getLogger("cifar_lightning").level == logging.NOTSET


# The page in a browser


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(command, sweep, browser, tmp_path, width):
    for seed in range(2):
        name = f"{HOSTILE}<script>alert({seed})</script>"
        finished(sweep / f"1{seed}", name, "data.val_size=5", seed=seed, test=0.3 + seed / 10, val=0.1)
    assert command("compare.py", "runs=sweep").code == 0
    address = f"file://{sweep / 'compare' / 'compare.html'}"
    visit(browser, address, width)
    assert browser.find_element("css selector", ".conclusion").text.startswith("optimizer.lr=0.2 is best")
    assert browser.find_element("css selector", "figure svg").size["width"] > 250
    sizes = browser.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert sizes[0] == sizes[1] <= width
    lines = "(text.selectNodeContents(cell), text.getClientRects().length)"
    cells = f"[...document.querySelectorAll('td.folder')].map((cell) => {lines})"
    assert set(browser.execute_script(f"const text = document.createRange(); return {cells}")) == {1}
    groups = browser.find_element("css selector", "table")

    def first_cells():
        return [row.text for row in groups.find_elements("css selector", "tbody th")]

    assert first_cells()[0] == "optimizer.lr=0.2"
    assert any(cell.startswith("model=<b>|`*$(rm)\\u202e<script>") for cell in first_cells())
    heading = groups.find_elements("css selector", "thead button")[3]
    assert heading.text == "test/acc %"
    browser.execute_script("arguments[0].click()", heading)
    assert first_cells()[0].startswith("model=")  # the lowest
    assert first_cells()[-1] == "optimizer.lr=0.3"  # without a number
    assert requested(browser) == [address]
    assert browser.get_log("browser") == []
