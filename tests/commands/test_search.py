"""search.py: what it says and writes, what it refuses, and with real runs that it can be killed."""

import csv
import html
import os
import re
import shlex
import signal
import subprocess
import sys
import time

import pytest
import torch
from conftest import ROOT

pytest.importorskip("optuna")

from browsing import requested, visit
from optuna.storages.journal import JournalFileBackend
from trying import SPACE, Failing, Train, begun, work_here

from cifar_lightning.commands.search import search
from cifar_lightning.config.schema import compose
from cifar_lightning.errors import RunError, UserError
from cifar_lightning.search import supervise
from cifar_lightning.search.worker import message

REAL = (
    *("experiment=smoke", "optimizer.lr=tag(log,interval(1e-3,1e-1))", "data.batch_size=choice(4,16)"),
    *("trainer.limit_train_batches=150", "trainer.max_epochs=2", "logger=none", "callbacks=none"),
)


def read(path):
    return list(csv.DictReader(path.read_text().splitlines()))


@pytest.fixture
def here(monkeypatch):
    """Searches work in the test's own process, with runs that take no time; gives how to choose those."""
    trains = [Train()]

    work_here(monkeypatch, lambda cfg, invocation: trains[-1](cfg, invocation))
    return trains


def test_a_search_ends_with_its_best_trial_and_the_command_for_it(command, here, tmp_path):
    outcome = command("search.py", "study=logs/lr", "n_trials=12", *SPACE, "name=a b")
    assert (outcome.code, outcome.err) == (0, "")
    assert "objective val/acc, on validation images alone" in outcome.out
    rows = read(tmp_path / "logs" / "lr" / "trials.csv")
    assert [row["trial"] for row in rows] == [str(number) for number in range(12)]
    best = max((row for row in rows if row["state"] == "complete"), key=lambda row: float(row["val/acc"]))
    [line] = re.findall(r"^train     (.*)$", outcome.out, re.MULTILINE)
    expected = ["python", "train.py", "experiment=smoke", "name=a b"]
    expected += [f"data.batch_size={best['data.batch_size']}", f"optimizer.lr={best['optimizer.lr']}"]
    assert shlex.split(line) == expected
    assert compose(*expected[2:]).optimizer.lr == float(best["optimizer.lr"])  # it can be typed
    page = (tmp_path / "logs" / "lr" / "report.html").read_text()
    assert page.count("<svg") == 3
    assert "optimizer.lr=tag(log,interval(1e-4,1e-1))" in page


def test_a_second_command_adds_trials(command, here, tmp_path):
    assert command("search.py", "study=s", "n_trials=2", *SPACE).code == 0
    outcome = command("search.py", "study=s", "n_trials=3", *SPACE)
    assert "study     s: 2 of 3 trials are done" in outcome.out
    assert len(here[0].calls) == 3
    outcome = command("search.py", "study=s", "n_trials=3", *SPACE)
    assert (outcome.code, len(here[0].calls)) == (0, 3)
    assert outcome.out.count("page      s/report.html") == 1


def test_a_space_of_few_points_gets_no_more_trials_than_that(command, here):
    outcome = command("search.py", "study=s", *SPACE[::2])
    assert outcome.code == 0
    assert "note      the space has 3 points: sampler=grid tries each once, tpe may repeat some" in outcome.out
    assert len(here[0].calls) == 3
    assert "sampler=grid" not in command("search.py", "study=grid", "sampler=grid", *SPACE[::2]).out


def test_a_study_without_trials_says_so(command, here, monkeypatch):
    monkeypatch.setattr(supervise, "supervise", lambda *told: 0)
    assert "result    There is no trial yet." in command("search.py", "study=s", *SPACE).out


def test_failures_are_told_with_their_reason(command, here, tmp_path):
    here.append(Failing())
    outcome = command("search.py", "study=s", "sampler=grid", "optimizer.lr=0.01,0.02", *SPACE[::2])
    assert outcome.code == 0
    assert "(2 complete, 4 failed)" in outcome.out
    assert "failed: MemoryError: no more" in outcome.out
    rows = read(tmp_path / "s" / "trials.csv")
    assert [row["reason"] for row in rows[-2:]] == ["the loss is not finite"] * 2


def test_a_named_space_and_choices_of_ones_own(command, here, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    text = "# @package _global_\ndefaults:\n  - override /data: synthetic\ndata: {val_size: 9}\n"
    (tmp_path / "mine" / "experiment" / "my_own.yaml").write_text(text)
    outcome = command("search.py", "--config-dir=mine", "study=s", "n_trials=1", "search=sgd", "experiment=my_own")
    assert (outcome.code, outcome.err) == (0, "")
    for key in ("optimizer.momentum", "optimizer.nesterov", "optimizer.weight_decay"):
        assert f"{key}=" in outcome.out
    again = re.findall("<pre><bdi>(.*)</bdi></pre>", (tmp_path / "s" / "report.html").read_text())[-1]
    assert command(*shlex.split(html.unescape(again))[1:]).code == 0


class Level(Train):
    """Reaches the same accuracy with all values."""

    def acc(self, cfg, epoch):
        return 0.1


def test_of_trials_that_are_level_no_key_is_important(command, here, tmp_path):
    here.append(Level())
    outcome = command("search.py", "study=s", "n_trials=5", *SPACE)
    assert (outcome.code, outcome.err) == (0, "")
    page = (tmp_path / "s" / "report.html").read_text()
    assert "The importance of keys cannot be told from these trials" in page


def test_a_file_that_was_edited_since_makes_another_search(command, here, tmp_path):
    (tmp_path / "mine" / "experiment").mkdir(parents=True)
    file = tmp_path / "mine" / "experiment" / "my_own.yaml"
    text = "# @package _global_\ndefaults:\n  - override /data: synthetic\ndata: {val_size: 9}\nseed: 0\n"
    typed = ("search.py", "--config-dir=mine", "study=s", SPACE[1], "experiment=my_own")
    file.write_text(text + "num_threads: 1\n")
    assert command(*typed, "n_trials=1").code == 0
    file.write_text(text + "num_threads: 2\n")  # how a run runs, not what it computes
    assert command(*typed, "n_trials=2").code == 0
    file.write_text(text + "label_smoothing: 0.1\n")
    refusal = command(*typed, "n_trials=3").refusal
    assert "holds another search, with label_smoothing=0.0 (now 0.1), in a file of conf/: its trials" in refusal
    assert len(here[0].calls) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["optimizer.lr=interval(0,1)"], "study=FOLDER is missing"),
        (["study=s", "optimizer.lrr=interval(0,1)"], "there is no key optimizer.lrr: did you mean optimizer.lr?"),
        (
            ["study=s", "overrides=[]", "optimizer.lr=interval(0,1)"],
            "optimizer.lr=interval(0,1) is given beside overrides=",
        ),
        (["study=s", "n_trails=3", SPACE[1]], "there is no key n_trails: did you mean n_trials?"),
        (["study=s", "experiment=smoke"], "nothing is searched: give a key a space"),
        (["study=s", SPACE[1], "data=synthetic"], "data.val_size must be above 0, got 0"),
        (["study=s", *SPACE, "trainer.limit_val_batches=0"], "trainer.limit_val_batches must be above 0, got 0"),
        (["study=s", *SPACE, "optimizer=choice(sgd,adamx)"], "optimizer=adamx is not one of its choices: did you mean"),
        (["study=s", *SPACE, "label_smoothing=choice(0,2)"], "label_smoothing must be in [0, 1], got 2"),
        (["study=s", *SPACE[::2], "optimizer.lr=choice(0.1,-1)"], "optimizer.lr must be"),
        (
            ["study=s", *SPACE, "trainer.accelerator=cpu", "trainer.devices=2"],
            "trainer.devices must be 1 in a search, got 2",
        ),
        (["study=s", *SPACE, "sampler=grid"], "optimizer.lr: a grid has no intervals"),
        (["study=s", "sampler=grid", "n_trials=9", *SPACE[::2]], "n_trials=9: the grid has 3 points"),
        (["study=s", *SPACE, "sampler=tp"], "sampler must be one of tpe, random, grid, got tp"),
        (["study=s", *SPACE, "n_workers=0"], "n_workers must be in [1, 1,000], got 0"),
        (["study=s", *SPACE, "+optimizer.x=1"], "no key can be added"),
        (["-m", "study=s", *SPACE], "-m: search.py does one thing at a time"),
    ],
)
def test_what_is_wrong_is_refused_in_one_line_before_anything_starts(command, tmp_path, arguments, words):
    assert words in command("search.py", *arguments).refusal
    assert not (tmp_path / "s").exists()


def test_a_value_that_is_right_with_some_others_only_is_no_mistake(here, tmp_path):
    here.append(Failing())
    overrides = [*SPACE[:1], "optimizer=choice(sgd,muon)", "optimizer.lr=choice(0.1,0.2)", "data.batch_size=4"]
    cfg = compose(f"study={tmp_path / 's'}", "sampler=grid", config_name="search")
    cfg.overrides = overrides
    assert len(search(cfg).trials) == 4


def test_from_python_nothing_else_is_needed(here, tmp_path):
    cfg = compose(f"study={tmp_path / 's'}", "n_trials=2", config_name="search")
    cfg.overrides = list(SPACE)
    found = search(cfg)
    assert [trial.number for trial in found.trials] == [0, 1]
    cfg.overrides = ["experiment=smoke", "optimizer.lr=interval(0,1"]
    with pytest.raises(UserError, match=r"cannot read optimizer.lr=interval"):
        search(cfg)


def test_the_page_in_a_browser(browser, here, tmp_path):
    cfg = compose(f"study={tmp_path / 's'}", "n_trials=8", config_name="search")
    cfg.overrides = [*SPACE, "name='<script>alert(1)</script>'"]
    search(cfg)
    visit(browser, (tmp_path / "s" / "report.html").as_uri())
    assert "best on the validation images" in browser.find_element("class name", "conclusion").text
    assert len(browser.find_elements("css selector", "figure svg")) == 3
    assert len(browser.find_elements("css selector", "tbody tr")) == 8
    assert requested(browser) == [(tmp_path / "s" / "report.html").as_uri()]


def test_shares_of_cores_and_gpus(monkeypatch):
    monkeypatch.delenv("OMP_NUM_THREADS", raising=False)
    assert supervise.shares(1, cores=8, gpus=["0", "1"]) == [{}]
    threads = {"OMP_NUM_THREADS": "2"}
    gpus = [threads | {"CUDA_VISIBLE_DEVICES": name} for name in ("3", "5", "3")]
    assert supervise.shares(3, cores=8, gpus=["3", "5"]) == gpus


def test_each_worker_has_its_gpu(tmp_path, monkeypatch):
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "3,5")
    told = f"import os; open(os.path.join({str(tmp_path)!r}, 'gpu ' + os.environ['CUDA_VISIBLE_DEVICES']), 'w').close()"
    monkeypatch.setattr("cifar_lightning.commands.search.WORKER", told)
    cfg = compose(f"study={tmp_path / 's'}", "n_trials=4", "n_workers=2", config_name="search")
    cfg.overrides = list(SPACE)
    with pytest.raises(RunError, match="0 of 4 trials are done, and the same command continues"):
        search(cfg)
    assert sorted(path.name for path in tmp_path.glob("gpu *")) == ["gpu 3", "gpu 5"]


def test_a_worker_that_dies_is_replaced_if_it_had_a_trial(tmp_path):
    code = "import os, sys; done = os.path.exists(sys.stdin.readline().strip()); os._exit(0 if done else 7)"
    deaths = []

    def note(pid, how):
        (tmp_path / "done").touch()
        deaths.append(how)
        return True

    assert supervise.supervise(code, f"{tmp_path / 'done'}\n".encode(), [{}], note) == 0
    assert deaths == ["exit code 7"]


@pytest.mark.parametrize("code", [130, 143, -15])
def test_a_worker_that_is_stopped_from_outside_is_replaced_and_no_death_noted(tmp_path, code, caplog):
    told = (
        "import os, sys; name = sys.stdin.readline().strip(); is_new = os.path.exists(name); open(name, 'w').close();"
    )
    told += f"os._exit(0) if is_new else {f'os._exit({code})' if code > 0 else 'os.kill(os.getpid(), 15)'}"
    assert supervise.supervise(told, f"{tmp_path / 'had'}\n".encode(), [{}], lambda pid, how: pytest.fail(how)) == 0
    assert f"stopped by {'SIGINT' if code == 130 else 'SIGTERM'} from outside; another one" in caplog.text


def test_workers_that_are_all_stopped_from_outside_are_not_replaced_for_ever(command, monkeypatch):
    monkeypatch.setattr(supervise, "MAX_STOPS", 2)
    stopped = supervise.supervise("import os; os._exit(143)", b"\n", [{}, {}], lambda pid, how: pytest.fail(how))
    assert stopped == 0
    monkeypatch.setattr(supervise, "supervise", lambda *told: 0)
    outcome = command("search.py", "study=s", "n_trials=3", *SPACE)
    assert (outcome.code, outcome.err) == (1, "error: 0 of 3 trials are done, and the same command continues\n")


def test_what_was_not_foreseen_in_a_worker_is_one_line_and_exit_code_1(tmp_path):
    code = (
        "from cifar_lightning.search import worker\nworker.ready()\n"
        "def fail(*told, **named):\n    raise ZeroDivisionError('by\\nzero')\nworker.work = fail\nworker.main(None)"
    )
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    pipes = {"stdin": subprocess.PIPE, "stderr": subprocess.PIPE}
    with subprocess.Popen([sys.executable, "-c", code], env=environment, **pipes) as process:
        process.stdin.write(message(begun(tmp_path / "s"), [0], num_failed=0))
        process.stdin.flush()
        assert process.stderr.read() == b"error: ZeroDivisionError: by zero\n"
    assert process.returncode == 1


def test_a_full_disk_of_a_journal_is_one_line_here_too(command, here, monkeypatch):
    def full(self, logs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    outcome = command("search.py", "study=s", "n_trials=3", *SPACE)
    assert outcome.code == 1
    assert re.fullmatch(
        r"error: study=\S*s: .*No space left on device; make room, then the same command continues\n", outcome.err
    )


def test_a_worker_that_says_why_it_ends_stops_the_others(tmp_path):
    code = "import os, time; time.sleep(60) if os.environ['NUMBER'] == '1' else os._exit(2)"
    began = time.monotonic()
    assert supervise.supervise(code, b"\n", [{"NUMBER": "0"}, {"NUMBER": "1"}], lambda pid, how: True) == 2
    assert time.monotonic() - began < 30


def start(tmp_path, *arguments):
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    line = [sys.executable, str(ROOT / "search.py"), "study=s", "n_workers=2", *REAL, *arguments]
    pipes = {"stdout": subprocess.PIPE, "stderr": subprocess.STDOUT, "text": True}
    return subprocess.Popen(line, cwd=tmp_path, env=environment, start_new_session=True, **pipes)


def wait_for(path, process):
    for _ in range(3_000):
        if path.exists() or process.poll() is not None:
            return
        time.sleep(0.05)


@pytest.mark.parametrize(
    "moment",
    [
        pytest.param(0.0, marks=pytest.mark.processes),
        *(pytest.param(m, marks=pytest.mark.slow) for m in (0.5, 1, 2, 4, 6, 8, 10, 12)),
    ],
)
def test_real_runs_killed_and_started_again(tmp_path, moment):
    process = start(tmp_path, "n_trials=2")
    wait_for(tmp_path / "s" / "0" / "checkpoints" / "last.ckpt", process)
    time.sleep(moment)
    workers = {int(path.read_text() or 0) for path in (tmp_path / "s" / ".trials").glob("*.lock")}
    for pid in (process.pid, *workers):
        if os.path.exists(f"/proc/{pid}"):
            os.kill(pid, signal.SIGKILL)
    process.communicate()
    again = start(tmp_path, "n_trials=2")
    out, _ = again.communicate(timeout=300)
    assert again.returncode == 0, out
    rows = read(tmp_path / "s" / "trials.csv")
    assert [(row["trial"], row["state"]) for row in rows] == [(str(number), "complete") for number in range(2)]
    assert all((tmp_path / "s" / str(number) / "metrics.json").exists() for number in range(2))
    if moment == 0:
        assert "after step" in (tmp_path / "s" / "0" / "train.log").read_text()
