"""Workers on a study: exact counts, whatever is killed; what fails, what is pruned, what is refused."""

import json
import os
import random
import signal
import time
from contextlib import ExitStack

import pytest

pytest.importorskip("optuna")

from optuna.storages.journal import JournalFileBackend
from trying import SPACE, Failing, Train, begun, quickly, states

from cifar_lightning.config.build import build
from cifar_lightning.config.resolve import resolve
from cifar_lightning.errors import RunError, SweepError, UserError
from cifar_lightning.search import trial as trial_module
from cifar_lightning.search.check import composed
from cifar_lightning.search.journal import JOURNAL
from cifar_lightning.search.results import results, trials_csv
from cifar_lightning.search.space import read_space
from cifar_lightning.search.worker import open_study, work


@pytest.fixture(autouse=True)
def composes_quickly(monkeypatch):
    monkeypatch.setattr(trial_module, "composed", quickly)


def texts(settings):
    space = read_space(settings.space, settings.overrides)
    return [dict(trial.texts) for trial in results(open_study(settings), space).trials]


def epochs(study, number):
    """How many epochs a trial has done."""
    path = study / str(number) / "epochs"
    return path.stat().st_size if path.exists() else 0


def worker(settings, train, seeds=(0,)):
    """A process that works; the test's own, copied."""
    pid = os.fork()
    if pid == 0:
        try:
            work(settings, seeds, train)
        finally:
            os._exit(1)
    return pid


def test_a_search_runs_as_many_trials_as_asked_and_more_later(tmp_path):
    settings, train = begun(tmp_path / "s"), Train()
    work(settings, [0], train)
    assert [call[0] for call in train.calls] == list("012345")
    assert set(states(settings)) <= {"COMPLETE", "PRUNED"}
    work(settings, [0], train)
    assert len(train.calls) == 6
    work(begun(tmp_path / "s", n_trials=8), [0], train)
    assert [call[0] for call in train.calls[6:]] == ["6", "7"]


def test_a_study_that_is_stopped_proposes_what_it_would_have_proposed(tmp_path):
    whole = begun(tmp_path / "whole", n_trials=14)
    work(whole, [0], Train())
    for num in (5, 11, 14):
        parts = begun(tmp_path / "parts", n_trials=num)
        work(parts, [0], Train())
    assert texts(parts) == texts(whole)
    other = begun(tmp_path / "other", own=["sampler_seed=1"], n_trials=14)
    work(other, [0], Train())
    assert texts(other) != texts(whole)


def test_the_objective_is_the_mean_over_seeds_and_each_has_its_folder(tmp_path):
    settings = begun(tmp_path / "s", seeds=3, n_trials=1)

    class BySeed(Train):
        def acc(self, cfg, epoch):
            return 0.1 * (cfg.seed + 1)

    train = BySeed()
    work(settings, [3, 4, 5], train)
    assert train.calls == [("seed3", 3, None), ("seed4", 4, None), ("seed5", 5, None)]
    assert [trial.value for trial in open_study(settings).trials()] == [pytest.approx(0.5)]
    assert sorted(os.listdir(tmp_path / "s" / "0")) == ["seed3", "seed4", "seed5"]


def test_a_trial_below_the_median_is_pruned_by_its_first_seed(tmp_path):
    settings = begun(tmp_path / "s", seeds=2, n_trials=6)

    class Falling(Train):
        def acc(self, cfg, epoch):
            return 0.9 - 0.01 * len(self.calls)

    train = Falling()
    work(settings, [0, 1], train)
    assert states(settings) == ["COMPLETE"] * 5 + ["PRUNED"]
    assert train.calls[-1] == ("seed0", 0, None)
    [*_, last] = open_study(settings).trials()
    assert last.user_attrs["reason"] == "pruned after epoch 1 at 79.00 %"


def test_a_failing_trial_is_recorded_with_its_reason_and_the_search_goes_on(tmp_path):
    settings = begun(tmp_path / "s", SPACE[0], SPACE[2], "optimizer.lr=choice(0.1,0.01)", own=["sampler=grid"])
    work(settings, [0], Failing())
    assert states(settings) == ["COMPLETE"] * 2 + ["FAIL"] * 4
    reasons = [trial.user_attrs.get("reason") for trial in open_study(settings).trials()]
    assert reasons[2:] == ["MemoryError: no more"] * 2 + ["the loss is not finite"] * 2
    found = results(open_study(settings), read_space({}, settings.overrides))
    assert found.best.number == 1
    assert found.command == "python train.py experiment=smoke data.batch_size=4 optimizer.lr=0.01"
    assert trials_csv(found).decode().splitlines()[3].split(",")[:3] == ["2", "failed", ""]


def test_a_search_ends_where_nothing_but_failures_comes(tmp_path):
    settings = begun(tmp_path / "s", SPACE[0], "data.batch_size=64", SPACE[1], n_trials=20)
    with pytest.raises(RunError, match="the first 5 trials have all failed, the last one with: the loss is not finite"):
        work(settings, [0], Failing())
    assert states(settings) == ["FAIL"] * 5


GRID = ("experiment=smoke", "data.batch_size=choice(64)", "optimizer.lr=range(1,9)")


def failed_beside(settings, first, num):
    """Work in a process whose trials fail until so many have, beside one that this process holds; then kill it."""
    pid = worker(settings, Failing())
    for _ in range(500):
        if len(states(settings)) > num and states(settings)[1:] == ["FAIL"] * num:
            break
        time.sleep(0.02)
    time.sleep(0.7)  # in which it could begin another one
    os.kill(pid, signal.SIGKILL)
    os.waitpid(pid, 0)
    assert states(settings) == [first] + ["FAIL"] * num


def test_a_search_waits_for_a_trial_that_runs_though_the_others_fail_and_goes_on_with_it(tmp_path):
    settings = begun(tmp_path / "s", *GRID, own=["sampler=grid"], n_trials=8)
    study = open_study(settings)
    with ExitStack() as stack:
        first = study.claim(stack, 8)  # as by another worker
        failed_beside(settings, "RUNNING", 5)
        study.report(first.number, 1, 0.5)  # that one has got somewhere
        failed_beside(settings, "RUNNING", 7)
    work(settings, [0], Train())
    assert states(settings) == ["COMPLETE"] + ["FAIL"] * 7


def test_trials_that_were_running_are_taken_up_before_the_first_failures_end_a_search(tmp_path):
    settings = begun(tmp_path / "s", *GRID, own=["sampler=grid"], n_trials=8)
    with ExitStack() as stack:
        open_study(settings).claim(stack, 8)
        failed_beside(settings, "RUNNING", 5)
    work(settings, [0], Train())
    assert states(settings) == ["COMPLETE"] + ["FAIL"] * 5 + ["COMPLETE"] * 2


def test_the_same_command_tries_five_more_where_the_first_have_failed(tmp_path):
    settings = begun(tmp_path / "s", *GRID, own=["sampler=grid"], n_trials=8)
    with pytest.raises(RunError, match=r"the first 5 trials have all failed, .* the same command tries others"):
        work(settings, [0], Failing())
    work(settings, [0], Train(), num_failed=5)
    assert states(settings) == ["FAIL"] * 5 + ["COMPLETE"] * 3


FULL = OSError(28, "No space left on device")


@pytest.mark.parametrize(
    ("error", "cause"),
    [
        (FULL, None),
        (RunError("last.ckpt cannot be written: No space left on device; 0 are free. Make room first"), FULL),
        (UserError("output_dir=s/0 cannot be used: No space left on device"), FULL),
    ],
)
def test_a_full_disk_is_not_the_trials_fault(tmp_path, error, cause):
    settings = begun(tmp_path / "s")

    def full(cfg, invocation):
        raise error from cause

    with pytest.raises(RunError, match=rf"study={tmp_path / 's'}: .*No space left.*; make room, then the same command"):
        work(settings, [0], full)
    assert states(settings) == ["RUNNING"]
    work(settings, [0], Train())
    assert len(states(settings)) == 6
    assert "RUNNING" not in states(settings)


@pytest.mark.parametrize("num_lines", range(2, 9))
def test_a_journal_that_cannot_be_written_is_told_in_one_line_and_loses_nothing(tmp_path, monkeypatch, num_lines):
    settings = begun(tmp_path / "s", n_trials=2)
    append, lines = JournalFileBackend.append_logs, []

    def full(self, logs):
        lines.extend(logs)
        if len(lines) > num_lines:
            raise FULL
        append(self, logs)

    monkeypatch.setattr(JournalFileBackend, "append_logs", full)
    with pytest.raises(RunError, match="No space left on device; make room, then the same command continues"):
        work(settings, [0], Train())
    monkeypatch.undo()
    monkeypatch.setattr(trial_module, "composed", quickly)
    assert "FAIL" not in states(settings)
    work(settings, [0], Train())
    assert states(settings) == ["COMPLETE"] * 2


def test_no_validation_images_end_the_search(tmp_path):
    settings = begun(tmp_path / "s")

    def without(cfg, invocation):
        assert invocation.sweeper_optimises
        raise SweepError("data.val_size must be above 0")

    with pytest.raises(SweepError, match="val_size"):
        work(settings, [0], without)
    assert states(settings) == ["RUNNING"]


class Other(Train):
    """Has other images each time."""

    def __call__(self, cfg, invocation):
        metrics = super().__call__(cfg, invocation)
        return metrics | {"fingerprint": {"train": "a", "val": f"b{len(self.calls) or ''}", "test": "c"}}


def test_other_images_end_the_search_and_the_trial_is_run_anew_when_they_are_back(tmp_path):
    settings = begun(tmp_path / "s", n_trials=3)
    words = f"study={tmp_path / 's'}: the images are not those of the trials before; bring the data back"
    work(begun(tmp_path / "s", n_trials=1), [0], Train())
    for _ in range(2):
        with pytest.raises(SweepError, match=words):
            work(settings, [0], Other())
    assert states(settings) == ["COMPLETE", "RUNNING"]
    train = Train()
    work(settings, [0], train)
    assert states(settings) == ["COMPLETE"] * 3
    assert train.calls[0] == ("1", 0, None)  # from its start
    assert {"1.other-data", "1.other-data1"} < {*os.listdir(tmp_path / "s")}


def test_a_trial_fails_whose_own_values_choose_other_images(tmp_path):
    settings = begun(tmp_path / "s", "experiment=choice(smoke,finetune)", own=["sampler=grid"], n_trials=2)
    work(settings, [0], Other())
    assert states(settings) == ["COMPLETE", "FAIL"]
    reasons = [trial.user_attrs.get("reason") for trial in open_study(settings).trials()]
    assert reasons == [None, "its images are not those of the trials before it: search other data in another folder"]


def test_other_images_are_refused_before_anything_is_trained(tmp_path, monkeypatch):
    monkeypatch.setattr(trial_module, "composed", composed)
    settings = begun(tmp_path / "s")
    study, space = open_study(settings), read_space(settings.space, settings.overrides)
    trial_module.refuse_other_data(study, space)  # there are no trials before
    config = resolve(composed(["experiment=smoke"], tmp_path))
    data = build(config.data, "data", seed=7)
    data.setup()
    study.check_data(data.fingerprint())
    trial_module.refuse_other_data(study, space)
    changed = read_space({}, [*settings.overrides, "data.split_seed=1"])  # stands in for data that have changed
    with pytest.raises(
        SweepError, match=r"the images are not those of the trials before; .* the same command continues"
    ):
        trial_module.refuse_other_data(study, changed)
    trial_module.refuse_other_data(study, read_space({}, ["data.split_seed=1", "experiment=choice(smoke,finetune)"]))
    assert states(settings) == []


@pytest.mark.parametrize("moment", [0.15, 0.4, *(pytest.param(None, marks=pytest.mark.slow) for _ in range(10))])
def test_kill_9_at_a_random_moment_loses_no_trial(tmp_path, moment):
    rng = random.Random()
    settings = begun(tmp_path / "s", n_trials=8)
    train = Train(seconds=0.01)
    pids = [worker(settings, train) for _ in range(2)]
    time.sleep(rng.uniform(0, 1.2) if moment is None else moment)
    for pid in pids:
        os.kill(pid, signal.SIGKILL)
        os.waitpid(pid, 0)
    done = [epochs(tmp_path / "s", number) for number in range(8)]
    work(settings, [0], train)
    assert len(states(settings)) == 8
    assert set(states(settings)) <= {"COMPLETE", "PRUNED"}
    assert sorted(os.listdir(tmp_path / "s" / ".trials")) == [f"{n}.lock" for n in range(8)]
    for number, state in enumerate(states(settings)):
        assert epochs(tmp_path / "s", number) >= done[number]
        assert epochs(tmp_path / "s", number) == 3 or state == "PRUNED"


def test_searches_from_two_terminals_share_the_work(tmp_path):
    settings = begun(tmp_path / "s", n_trials=10)
    train = Train(seconds=0.02)
    pids = [worker(settings, train) for _ in range(2)]
    work(settings, [0], train)
    for pid in pids:
        os.waitpid(pid, 0)
    assert len(states(settings)) == 10
    assert set(states(settings)) <= {"COMPLETE", "PRUNED"}
    assert len(train.calls) < 10
    assert max(epochs(tmp_path / "s", number) for number in range(10)) == 3  # none is done twice


def test_a_worker_waits_for_the_trial_of_another_and_takes_it_over_when_that_is_killed(tmp_path):
    settings = begun(tmp_path / "s", n_trials=1)
    other = worker(settings, Train(seconds=0.5))
    while not (tmp_path / "s" / "0" / "epochs").exists():
        time.sleep(0.01)
    killer = os.fork()
    if killer == 0:
        time.sleep(0.3)
        os.kill(other, signal.SIGKILL)
        os._exit(0)
    train = Train()
    work(settings, [0], train)
    for pid in (killer, other):
        os.waitpid(pid, 0)
    assert train.calls == [("0", 0, "auto")]
    assert states(settings) == ["COMPLETE"]


def test_a_trial_whose_process_is_killed_three_times_fails(tmp_path):
    settings = begun(tmp_path / "s", n_trials=1)
    study = open_study(settings)
    for deaths in range(3):
        other = worker(settings, Train(seconds=60))
        while not (tmp_path / "s" / "0" / ".hydra" / "config.yaml").exists() or study._signed(0) != str(other):
            time.sleep(0.01)
        os.kill(other, signal.SIGKILL)
        os.waitpid(other, 0)
        assert states(settings) == ["RUNNING"], deaths
        assert study.note_death(other, "SIGKILL")
    [trial] = study.trials()
    assert trial.state.name == "FAIL"
    assert trial.user_attrs["reason"] == "its process was ended by SIGKILL 3 times; is the memory enough?"
    assert not study.note_death(other, "SIGKILL")


def test_half_a_line_of_a_killed_process_is_cut_off(tmp_path):
    settings = begun(tmp_path / "s", n_trials=2)
    work(settings, [0], Train())
    with (tmp_path / "s" / JOURNAL).open("a") as file:
        file.write('{"op_code":4,"worker')
    work(begun(tmp_path / "s", n_trials=3), [0], Train())
    assert len(states(settings)) == 3


def test_a_trial_killed_before_it_had_its_values_gets_the_rest(tmp_path):
    settings = begun(tmp_path / "s", n_trials=1)
    open_study(settings).optuna.ask()
    work(settings, [0], Train())
    assert states(settings) == ["COMPLETE"]
    assert set(texts(settings)[0]) == {"optimizer.lr", "data.batch_size"}


def test_values_of_a_hostile_journal_are_refused(tmp_path):
    settings = begun(tmp_path / "s", n_trials=1)
    open_study(settings).optuna.ask()
    path = tmp_path / "s" / JOURNAL
    line = {"op_code": 5, "worker_id": "x", "trial_id": 0, "param_name": "optimizer.lr", "param_value_internal": 7.0}
    distribution = {"name": "FloatDistribution", "attributes": {"step": None, "low": 1, "high": 9, "log": False}}
    with path.open("a") as file:
        file.write(json.dumps({**line, "distribution": json.dumps(distribution)}) + "\n")
    with pytest.raises(UserError, match=r"trial 0 has optimizer.lr=7.0, which is not in tag"):
        work(settings, [0], Train())


@pytest.mark.parametrize("content", [b"\xff\x00\n", b"[]\n", b'{"op_code": 99}\n', b"no json\n{}\n"])
def test_a_journal_that_is_none_is_refused_in_one_line(tmp_path, content):
    settings = begun(tmp_path / "s")
    (tmp_path / "s" / JOURNAL).write_bytes(content)
    with pytest.raises(UserError, match=r"no journal of Optuna's, or damaged") as refused:
        open_study(settings)
    assert "\n" not in str(refused.value)


def test_links_out_of_a_study_are_refused(tmp_path):
    settings = begun(tmp_path / "s")
    (tmp_path / "elsewhere").mkdir()
    (tmp_path / "s" / "0").symlink_to(tmp_path / "elsewhere")
    with pytest.raises(SweepError, match="is a link"):
        work(settings, [0], Train())
    assert list((tmp_path / "elsewhere").iterdir()) == []
    (tmp_path / "s" / JOURNAL).unlink()
    (tmp_path / "s" / JOURNAL).symlink_to(tmp_path / "elsewhere" / "journal")
    with pytest.raises(UserError, match="is a link"):
        open_study(settings)


@pytest.mark.parametrize(
    ("changed", "words"),
    [
        (
            ["optimizer.lr=interval(1,2)", SPACE[2]],
            r"optimizer.lr=tag\(log,interval\(1e-4,1e-1\)\) \(now interval\(1,2\)\)",
        ),
        ([*SPACE[1:], "trainer.max_epochs=9"], r"trainer.max_epochs=nothing \(now 9\)"),
        ([SPACE[1]], r"data.batch_size=choice\(4,16,64\) \(now nothing\)"),
    ],
)
def test_another_search_in_the_same_folder_is_refused(tmp_path, changed, words):
    begun(tmp_path / "s")
    with pytest.raises(UserError, match=words):
        begun(tmp_path / "s", SPACE[0], *changed)


def test_the_same_search_in_other_words_is_the_same(tmp_path):
    begun(tmp_path / "s", *SPACE, "label_smoothing=0.10", "num_threads=1")
    begun(tmp_path / "s", "label_smoothing=1e-1", "optimizer.lr=tag(log, interval(0.0001, 0.1))", SPACE[0], SPACE[2])


def test_other_seeds_and_a_grid_are_another_search(tmp_path):
    begun(tmp_path / "s")
    with pytest.raises(UserError, match=r"seeds=1 \(now 2\)"):
        begun(tmp_path / "s", seeds=2)
    with pytest.raises(UserError, match="sampler=tpe or random"):
        begun(tmp_path / "s", own=["sampler=grid"])


@pytest.mark.parametrize("record", ["{", "[]", '{"format": 1}', '{"format": 2, "space": {}}', "[" * 100_000])
def test_a_record_that_is_none_is_refused_in_one_line(tmp_path, record):
    begun(tmp_path / "s")
    (tmp_path / "s" / "study.json").write_text(record)
    with pytest.raises(UserError, match=r"study.json cannot be read") as refused:
        begun(tmp_path / "s")
    assert "\n" not in str(refused.value)


def test_a_folder_of_something_else_is_refused(tmp_path):
    (tmp_path / "s").mkdir()
    (tmp_path / "s" / "letter.txt").write_text("dear")
    with pytest.raises(UserError, match=r"holds letter.txt, and no study"):
        begun(tmp_path / "s")
