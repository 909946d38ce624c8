"""Saving: whatever happens, what stands under a checkpoint's name is whole."""

import errno
import os
import resource
import shutil
import signal
import stat
import subprocess
import sys
import threading
import time
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from conftest import SMALL, after_each_save, differences, last
from lightning.pytorch.callbacks import Callback

from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.checkpoint.durable_io import DurableIO
from cifar_lightning.checkpoint.format import read
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.commands.train import train
from cifar_lightning.errors import RunError

# A process that forks children which do nothing but save, and kills each after a random while.
KILLS = """
import os, random, signal, sys, time
import torch
from cifar_lightning.checkpoint.format import FORMAT_VERSION, read
from cifar_lightning.checkpoint.durable_io import DurableIO
torch.set_num_threads(1)  # OpenMP's other threads would be missing in a child
path, num_kills = sys.argv[1], int(sys.argv[2])
settings = {"name": "x", "seed": 0, "tta": 0, "num_threads": None, "compile": False}
settings |= {"classes": ["a", "b"], "image_size": [1, 1], "model": {"name": "tutorial"}, "fingerprint": {}}
settings |= {"normalize": {}, "data": {}, "trainer": {}}
contents = {"format_version": FORMAT_VERSION, "settings": settings}
contents |= {"global_step": 0, "state_dict": {"weight": torch.zeros(500_000)}}
DurableIO().save_checkpoint(contents, path)
random.seed(0)
for step in range(num_kills):
    if (child := os.fork()) == 0:
        while True:
            contents["global_step"] += 1
            DurableIO().save_checkpoint(contents, path)
    time.sleep(random.uniform(0.005, 0.05))
    while step == 0 and read(path)["global_step"] == 0:  # however slow the disk: it saves
        time.sleep(0.01)
    os.kill(child, signal.SIGKILL)
    os.waitpid(child, 0)
    contents["global_step"] = read(path)["global_step"]  # whole, or this raises
print(contents["global_step"])
"""


@pytest.mark.parametrize(
    ("num_kills", "temporary"),
    [
        (10, "/dev/shm"),
        pytest.param(100, "/dev/shm", marks=pytest.mark.slow),
        pytest.param(100, None, marks=pytest.mark.slow),
    ],
)
def test_kills_while_saving(num_kills, temporary, tmp_path):
    """With TMPDIR on another device, and on the same one."""
    if temporary and not Path(temporary).is_dir():
        pytest.skip(f"there is no {temporary} here")
    environment = os.environ | ({"TMPDIR": temporary} if temporary else {})
    command = [sys.executable, "-c", KILLS, str(tmp_path / "last.ckpt"), str(num_kills)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    assert int(done.stdout) > 0  # it was saving all the while
    read(tmp_path / "last.ckpt")


def test_a_file_is_replaced_and_readable_by_others(tmp_path):
    path = tmp_path / "new folder" / "metrics.json"
    write_durably(path, b"one")
    write_durably(path, b"two")
    assert path.read_bytes() == b"two"
    assert [found.name for found in path.parent.iterdir()] == ["metrics.json"]
    mask = os.umask(0)
    os.umask(mask)
    assert stat.S_IMODE(path.stat().st_mode) == 0o666 & ~mask


def test_content_is_on_the_disk_before_the_name_and_the_name_after(tmp_path, monkeypatch):
    calls = []
    fsync, replace = os.fsync, os.replace

    def syncing(descriptor):
        calls.append("folder" if stat.S_ISDIR(os.fstat(descriptor).st_mode) else "content")
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", syncing)
    monkeypatch.setattr(os, "replace", lambda *paths: (calls.append("name"), replace(*paths)))
    write_durably(tmp_path / "x", b"x")
    assert calls == ["content", "name", "folder"]


@pytest.mark.parametrize("code", [errno.ENOSPC, errno.EDQUOT])
def test_a_full_disk(tmp_path, monkeypatch, code):
    path = tmp_path / "checkpoints" / "last.ckpt"
    write_durably(path, b"before")

    def full(descriptor):
        raise OSError(code, os.strerror(code))

    monkeypatch.setattr(os, "fsync", full)
    expected = (
        rf"last\.ckpt cannot be written: {os.strerror(code)}; it needs 1,000 bytes, [\d,]+ are free; the one before "
    )
    with pytest.raises(RunError, match=expected + r"it is whole\. Make room first$"):
        write_durably(path, bytes(1000))
    assert path.read_bytes() == b"before"
    assert [found.name for found in path.parent.iterdir()] == ["last.ckpt"]


def test_a_limit_on_the_size_of_files(tmp_path):
    """A real error of the system's, in the midst of writing."""
    path = tmp_path / "checkpoints" / "last.ckpt"
    write_durably(path, b"before")
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    handler = signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
    resource.setrlimit(resource.RLIMIT_FSIZE, (500, limits[1]))
    try:
        refusal = r"cannot be written: files may not be that large here; the one before it is whole\. Raise the limit"
        with pytest.raises(RunError, match=refusal):
            write_durably(path, bytes(1000))
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
        signal.signal(signal.SIGXFSZ, handler)
    assert path.read_bytes() == b"before"


def test_a_folder_that_cannot_be_made(tmp_path):
    (tmp_path / "checkpoints").write_text("a file")
    with pytest.raises(RunError, match=r"last\.ckpt cannot be written: .*File exists"):
        write_durably(tmp_path / "checkpoints" / "last.ckpt", b"x")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_not_finite_are_never_written(tmp_path, value):
    contents = {"global_step": 7, "state_dict": {"net.weight": torch.tensor([1.0, value]), "count": torch.tensor(1)}}
    (tmp_path / "last.ckpt").write_text("before")
    with pytest.raises(
        RunError, match=r"after step 7 net\.weight holds numbers that are not finite; nothing was saved"
    ):
        DurableIO().save_checkpoint(contents, tmp_path / "last.ckpt")
    assert (tmp_path / "last.ckpt").read_text() == "before"


@pytest.fixture
def on_a_gpu(monkeypatch):
    monkeypatch.setattr("cifar_lightning.checkpoint.durable_io.is_on_gpu", lambda checkpoint: True)


@pytest.fixture
def disk(monkeypatch):
    """A disk on which nothing is written before this event."""
    ready = threading.Event()
    monkeypatch.setattr(
        "cifar_lightning.checkpoint.durable_io.write_durably", lambda *args: ready.wait(60) and write_durably(*args)
    )
    yield ready
    ready.set()


@pytest.mark.usefixtures("on_a_gpu")
def test_a_gpu_does_not_wait_for_the_disk_and_what_it_does_meanwhile_is_not_saved(tmp_path, disk):
    saver, path, weights = DurableIO(), tmp_path / "last.ckpt", torch.zeros(3)
    saver.save_checkpoint({"global_step": 1, "state_dict": {"net.weight": weights}}, path)
    weights += 1
    assert not path.exists()
    disk.set()
    saver.wait()
    assert torch.load(path, weights_only=True)["state_dict"]["net.weight"].tolist() == [0, 0, 0]


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("notice", [DurableIO.wait, lambda saver: saver.save_checkpoint({}, "unused")])
def test_what_went_wrong_in_the_background_is_said_once(tmp_path, notice):
    saver, path = DurableIO(), tmp_path / "last.ckpt"
    saver.save_checkpoint({"global_step": 7, "state_dict": {"net.weight": torch.tensor([torch.nan])}}, path)
    with pytest.raises(RunError, match=r"after step 7 net\.weight holds numbers that are not finite"):
        notice(saver)
    saver.save_checkpoint({"global_step": 8, "state_dict": {"net.weight": torch.zeros(3)}}, path)
    saver.wait()
    assert torch.load(path, weights_only=True)["global_step"] == 8


@pytest.mark.usefixtures("on_a_gpu")
def test_where_there_is_no_room_for_a_copy_saving_waits(tmp_path, disk, monkeypatch):
    def full(value):
        raise torch.OutOfMemoryError

    monkeypatch.setattr("cifar_lightning.checkpoint.durable_io.copy.deepcopy", full)
    disk.set()
    DurableIO().save_checkpoint({"global_step": 1, "state_dict": {"w": torch.zeros(3)}}, tmp_path / "last.ckpt")
    assert torch.load(tmp_path / "last.ckpt", weights_only=True)["global_step"] == 1


def test_in_the_background_the_same_is_saved(compose, tmp_path, monkeypatch):
    recipe = (
        *SMALL,
        "data.val_size=20",
        "callbacks=lookahead",
        "optimizer=muon",
        "model=speedrun",
        "model.widths=[4,4,4]",
    )
    train(compose(*recipe))
    monkeypatch.setattr("cifar_lightning.checkpoint.durable_io.is_on_gpu", lambda checkpoint: True)
    train(compose(*recipe, f"output_dir={tmp_path / 'beside'}"))
    for name in ("last.ckpt", "best.ckpt"):
        found = [read(tmp_path / run / "checkpoints" / name) for run in ("run", "beside")]
        assert not differences(*found)


@pytest.mark.gpu
def test_a_checkpoint_of_a_gpu_is_of_its_moment(tmp_path):
    saver, weights = DurableIO(), torch.zeros(1000, 1000, device="cuda")
    for step in range(1, 101):
        weights += 1
        if step in (1, 50):
            saver.save_checkpoint({"global_step": step, "state_dict": {"w": weights}}, tmp_path / f"{step}.ckpt")
        weights @ weights
    saver.wait()
    for step in (1, 50):
        saved = torch.load(tmp_path / f"{step}.ckpt", map_location="cpu", weights_only=True)["state_dict"]["w"]
        assert torch.equal(saved, torch.full((1000, 1000), float(step)))


def test_a_checkpoint_is_read_through_the_gate(tmp_path):
    torch.save({"state_dict": {}}, tmp_path / "last.ckpt")
    with pytest.raises(Exception, match="is not a checkpoint of this project: format_version is missing"):
        DurableIO().load_checkpoint(tmp_path / "last.ckpt", weights_only=False)


# In a run


@pytest.fixture
def in_the_second_epoch(monkeypatch):
    """Have something happen after the seventh step, of twelve."""

    def happen(event):
        def on_train_batch_end(self, trainer, pl_module, *args):
            original(self, trainer, pl_module, *args)
            if trainer.global_step == 7:
                event()

        original = TrainingCurves.on_train_batch_end
        monkeypatch.setattr(TrainingCurves, "on_train_batch_end", on_train_batch_end)

    return happen


@pytest.mark.parametrize("device", ["cpu", "gpu"])
def test_a_disk_that_fills_up_ends_the_run_in_one_line(
    device, request, command, tmp_path, monkeypatch, in_the_second_epoch
):
    def full(descriptor):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    def save(self, *args, **options):
        savers.append(self)
        original(self, *args, **options)

    def fill_up():
        savers[-1].wait()  # the first epoch's checkpoint still finds room
        monkeypatch.setattr(os, "fsync", full)

    if device == "gpu":
        request.getfixturevalue("on_a_gpu")
    savers, original = [], DurableIO.save_checkpoint
    monkeypatch.setattr(DurableIO, "save_checkpoint", save)
    in_the_second_epoch(fill_up)
    outcome = command("train.py", *SMALL, f"output_dir={tmp_path / 'run'}", tiny=True)
    assert outcome.code == 1
    assert outcome.err.startswith(
        f"error: {tmp_path / 'run' / 'checkpoints' / 'last.ckpt'} cannot be written: No space"
    )
    assert outcome.err.endswith(f"Make room first; then resume with resume={tmp_path / 'run'}\n")
    assert last(tmp_path / "run")["global_step"] == 6


@pytest.mark.usefixtures("on_a_gpu")
def test_a_run_ends_when_its_checkpoint_is_on_the_disk(compose, tmp_path, disk, monkeypatch):
    def evaluated(self, trainer, pl_module):
        assert not (tmp_path / "run" / "checkpoints" / "last.ckpt").exists()
        threading.Timer(0.3, disk.set).start()

    monkeypatch.setattr(TrainingCurves, "on_test_end", evaluated)
    train(compose(*SMALL, "trainer.max_epochs=1"))
    assert last(tmp_path / "run")["global_step"] == 6


@pytest.mark.usefixtures("on_a_gpu")
def test_a_run_that_is_stopped_waits_for_its_checkpoint(command, tmp_path, monkeypatch, in_the_second_epoch):
    slowly = lambda *args: (time.sleep(0.3), write_durably(*args))  # noqa: E731
    monkeypatch.setattr("cifar_lightning.checkpoint.durable_io.write_durably", slowly)
    in_the_second_epoch(lambda: signal.raise_signal(signal.SIGTERM))
    outcome = command("train.py", *SMALL, f"output_dir={tmp_path / 'run'}", tiny=True)
    assert outcome.code == 143
    assert "resume with: python train.py resume=" in outcome.err
    assert last(tmp_path / "run")["global_step"] == 7


@pytest.mark.usefixtures("on_a_gpu")
def test_a_signal_at_the_end_waits_for_the_checkpoint(command, tmp_path, disk, monkeypatch):
    def evaluated(self, trainer, pl_module):
        threading.Timer(0.2, signal.raise_signal, [signal.SIGTERM]).start()
        threading.Timer(0.6, disk.set).start()

    monkeypatch.setattr(TrainingCurves, "on_test_end", evaluated)
    outcome = command("train.py", *SMALL, "trainer.max_epochs=1", f"output_dir={tmp_path / 'run'}", tiny=True)
    assert outcome.code == 143
    assert "resume with: python train.py resume=" in outcome.err
    assert last(tmp_path / "run")["global_step"] == 6


@pytest.mark.usefixtures("on_a_gpu")
@pytest.mark.parametrize("error", [RunError("no room"), torch.OutOfMemoryError("no room")])
def test_what_ends_a_run_is_not_hidden_by_its_last_checkpoint(
    compose, tmp_path, monkeypatch, in_the_second_epoch, caplog, error
):
    def full(*args):
        raise error

    def fail():
        raise KeyError("what ended it")

    monkeypatch.setattr("cifar_lightning.checkpoint.durable_io.write_durably", full)
    in_the_second_epoch(fail)
    with pytest.raises(KeyError, match="what ended it"):
        train(compose(*SMALL))
    assert "no room" in caplog.text


def test_a_folder_that_is_removed_is_made_again(compose, tmp_path, in_the_second_epoch):
    in_the_second_epoch(lambda: shutil.rmtree(tmp_path / "run" / "checkpoints"))
    train(compose(*SMALL))
    assert last(tmp_path / "run")["global_step"] == 12


def test_the_last_checkpoint_is_of_the_last_epoch_however_bad_it_is(compose, tmp_path, monkeypatch):
    import cifar_lightning.classifier as module

    accuracies = iter([0.9, 0.8, 0.7, 0.6])
    original = module.evaluate
    worse = lambda *args: replace(original(*args), acc=next(accuracies))  # noqa: E731
    monkeypatch.setattr(module, "evaluate", worse)
    train(compose(*SMALL, "data.val_size=20", "trainer.max_epochs=3", "trainer.num_sanity_val_steps=0"))
    assert last(tmp_path / "run")["global_step"] == 12
    best = torch.load(tmp_path / "run" / "checkpoints" / "best.ckpt", weights_only=True)
    assert best["global_step"] == 4


@pytest.fixture
def saved(monkeypatch):
    """The steps after which last.ckpt has been written."""
    steps = []
    after_each_save(monkeypatch, lambda trainer, path: steps.append(trainer.global_step))
    return steps


def test_a_checkpoint_is_written_every_few_minutes_within_an_epoch(compose, saved, monkeypatch):
    now = iter(range(0, 10_000, 61))  # a step takes 61 seconds
    monkeypatch.setattr("cifar_lightning.callbacks.saving.time.monotonic", lambda: next(now))
    train(compose(*SMALL, "data.batch_size=5", "trainer.max_epochs=1", "checkpoint.every_minutes=3"))
    assert saved == [3, 6, 9, 12]  # saving reads the clock too; the last one is the epoch's end


@pytest.mark.parametrize(
    ("overrides", "expected"),
    [
        (["trainer.max_epochs=3"], [18]),
        (["trainer.max_epochs=null", "trainer.max_steps=6"], [6]),
        (["trainer.max_epochs=2", "checkpoint.every_minutes=0"], list(range(1, 13))),
        (["trainer.max_epochs=5", "+callbacks.stop._target_=test_write.StopAfterTwoEpochs"], [12]),
    ],
)
def test_not_each_epoch_need_end_with_a_checkpoint(overrides, expected, compose, saved):
    train(compose(*SMALL, "checkpoint.every_epoch=false", *overrides))
    assert saved == expected


class StopAfterTwoEpochs(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        trainer.should_stop = trainer.current_epoch == 1


@pytest.mark.parametrize("value", ["1", "often", "null"])
def test_whether_each_epoch_ends_with_a_checkpoint_is_true_or_false(command, value):
    outcome = command("train.py", *SMALL, f"checkpoint.every_epoch={value}", tiny=True)
    assert outcome.code == 2
    assert outcome.err.startswith("error: checkpoint.every_epoch must be true or false, got ")


@pytest.mark.parametrize("value", ["-1", "nan", "often", "null"])
def test_minutes_between_saves(command, value):
    outcome = command("train.py", *SMALL, f"checkpoint.every_minutes={value}", tiny=True)
    assert outcome.code == 2
    assert outcome.err.startswith("error: checkpoint.every_minutes must be ")


def test_a_checkpoint_holds_nothing_but_plain_values_and_tensors(compose, tmp_path):
    def kinds(value):
        if isinstance(value, dict):
            return {str} | set().union(*(kinds(part) for part in [*value.keys(), *value.values()]))
        if type(value) in (list, tuple):
            return set().union(*map(kinds, value))
        return {type(value)}

    train(compose("experiment=smoke", "data.val_size=20", "callbacks=lookahead"))
    assert kinds(last(tmp_path / "run")) <= {str, int, float, bool, type(None), torch.Tensor}
