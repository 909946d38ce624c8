"""Each patch is still needed: a test fails once Lightning, Hydra or torch does by itself what the patch is for."""

import ast
import csv
import inspect
import re
import shutil
import signal
import threading
import warnings
from contextlib import nullcontext
from pathlib import Path
from types import SimpleNamespace

import hydra
import lightning as L
import pytest
import torch
from conftest import ROOT, make_batches, make_classifier, make_trainer
from hydra._internal.callbacks import Callbacks
from hydra._internal.config_loader_impl import ConfigLoaderImpl
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.global_hydra import GlobalHydra
from hydra.core.plugins import Plugins
from hydra.experimental.callback import Callback as HydraCallback
from hydra.plugins.sweeper import Sweeper
from hydra.types import HydraContext, RunMode
from lightning.pytorch.callbacks import Callback
from lightning.pytorch.loggers.csv_logs import ExperimentWriter
from omegaconf import OmegaConf
from torch import nn
from torch.utils.tensorboard import SummaryWriter

from cifar_lightning import patches
from cifar_lightning.config.schema import CONF
from cifar_lightning.errors import UserError
from cifar_lightning.optim.builders import sgd

PRIVATE = re.compile(
    r"\b(?:trainer|fit_loop|epoch_loop|strategy|connector|optimizer|logger|experiment|config)(?:\(\))?\._[a-z]\w*"
    r"|\btorch\.(?:\w+\.)*_(?!foreach)[a-z]\w*"
    r"|from (?:hydra|lightning|torch|omegaconf|tensorboard)[\w.]*\._[\w.]* import"
    r"|from (?:hydra|lightning|torch|omegaconf|tensorboard)[\w.]* import _"
)
"""Private names of others, as they are written. ``torch._foreach_...`` are in torch's documentation."""


def test_private_names_are_touched_in_patches_alone():
    files = [*(ROOT / "cifar_lightning").rglob("*.py"), *ROOT.glob("*.py"), *(ROOT / "benchmarks").glob("*.py")]
    found = {
        f"{path.relative_to(ROOT)}: {match.group()}"
        for path in files
        for match in PRIVATE.finditer(path.read_text())
        if path.name != "patches.py"
    }
    assert found == set()
    assert len(PRIVATE.findall((ROOT / "cifar_lightning" / "patches.py").read_text())) >= 6


def test_every_patch_has_a_test_here():
    defined = [node for node in ast.parse(Path(patches.__file__).read_text()).body if hasattr(node, "name")]
    text = Path(__file__).read_text()
    for node in defined:
        assert f"patches.{node.name}" in text, node.name


def test_hydras_parser_still_takes_a_flag_between_overrides_for_their_end(capsys):
    arguments = ["seed=7", "--cfg", "job", "optimizer.lr=0.25"]
    with pytest.raises(SystemExit, match="2"):
        get_args_parser().parse_args(arguments)
    assert capsys.readouterr().err.count("\n") > 1
    assert patches.hydra_flags().parse_intermixed_args(arguments).overrides == ["seed=7", "optimizer.lr=0.25"]


class PlainSweeper(Sweeper):
    """As much of one as composes its jobs."""

    def setup(self, **objects):
        raise NotImplementedError

    def sweep(self, arguments):
        raise NotImplementedError


def test_hydra_still_composes_the_jobs_of_a_sweep_beforehand_and_shows_them_to_no_one():
    overrides, shown = [["seed=3"], ["seed=5"]], []
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        master = loader.load_configuration("train", [], run_mode=RunMode.MULTIRUN)
        sweeper = PlainSweeper()
        sweeper.hydra_context, sweeper.config = HydraContext(loader, Callbacks(master)), master
        for _ in range(2):
            sweeper.validate_batch_is_legal(overrides)
            assert shown == []
            with patches.watched_jobs(lambda config, number: shown.append((config.seed, number)), lambda *job: False):
                sweeper.validate_batch_is_legal(overrides)
            assert shown == [(3, 0), (5, 1)]
            shown.clear()
            with patches.watched_jobs(
                lambda config, number: shown.append(number), lambda job, number: job == ["seed=3"]
            ):
                sweeper.validate_batch_is_legal(overrides)
            assert shown == [1]
            shown.clear()


class Launched(Exception):
    """In place of the jobs."""


def launch(batch, initial_job_idx):
    raise Launched("here")


@pytest.fixture
def basic_sweeper(tmp_path):
    """Gives Hydra's own sweeper, with two batches, and a launcher that tells that it would launch."""

    def make():
        loader = GlobalHydra.instance().config_loader()
        typed = ["hydra.sweeper.max_batch_size=1", f"hydra.sweep.dir={tmp_path}"]
        config = loader.load_configuration("train", typed, run_mode=RunMode.MULTIRUN)
        context = HydraContext(loader, Callbacks(config))
        sweeper = Plugins.instance().instantiate_sweeper(config=config, hydra_context=context, task_function=print)
        sweeper.launcher = SimpleNamespace(launch=launch)
        return sweeper

    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        yield make


def test_hydra_still_composes_a_batch_of_a_sweep_just_before_it_is_launched(basic_sweeper, monkeypatch):
    composed, shown = [], []
    load = ConfigLoaderImpl.load_sweep_config

    def load_noted(self, master_config, sweep_overrides):
        composed.append(sweep_overrides)
        return load(self, master_config, sweep_overrides)

    monkeypatch.setattr(ConfigLoaderImpl, "load_sweep_config", load_noted)
    with pytest.raises(Launched, match="here"):
        basic_sweeper().sweep(["seed=3,5"])
    assert composed == [["seed=3"]]
    watched = patches.watched_jobs(lambda config, number: shown.append((config.seed, number)), lambda *job: False)
    with watched, pytest.raises(Launched, match="here"):
        basic_sweeper().sweep(["seed=3,5"])
    assert shown == [(3, 0), (5, 1)]


def test_hydra_still_warns_of_a_file_called_as_a_config_of_a_plugin():
    ConfigStore.instance().store(group="hydra/launcher", name="joblib", node={"n_jobs": -1, "_target_": "their"})

    def compose():
        with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
            return hydra.compose("train", ["hydra/launcher=joblib"], return_hydra_config=True).hydra.launcher

    with pytest.warns(UserWarning, match="validated against ConfigStore schema"):
        compose()
    patches.prefer_own_launchers(["joblib", "unknown"])
    with warnings.catch_warnings(record=True) as warned:
        assert compose()._target_.endswith("JoblibLauncher")
    assert warned == []


def test_hydra_still_makes_little_of_an_error_in_a_callback(basic_sweeper, tmp_path):
    class Refusing(HydraCallback):
        def on_multirun_start(self, config, **options):
            raise UserError("no")

    config = basic_sweeper().config
    callbacks = Callbacks(config)
    callbacks.callbacks = [Refusing()]
    with pytest.warns(UserWarning, match=r"Refusing\.on_multirun_start raised UserError: no"):
        callbacks.on_multirun_start(config=config, config_name="train")

    def refuse(sweeper):
        assert sweeper.config.seed == 0
        assert sweeper.launcher is not None
        assert not list(tmp_path.iterdir())
        raise UserError("no")

    with patches.before_sweeps(lambda config: None, refuse), pytest.raises(UserError, match="no"):
        basic_sweeper()


def test_lightning_still_notes_the_name_of_each_hook_through_the_module(tmp_path, monkeypatch):
    names = []
    through_module = nn.Module.__setattr__
    monkeypatch.setattr(
        nn.Module, "__setattr__", lambda self, name, value: names.append(name) or through_module(self, name, value)
    )
    counts = []
    for patch in (False, True):
        trainer, classifier = make_trainer(tmp_path), make_classifier()
        names.clear()
        if patch:
            with patches.quick_hook_names():
                trainer.fit(classifier, make_batches(), make_batches())
        else:
            trainer.fit(classifier, make_batches(), make_batches())
        counts.append(names.count("_current_fx_name"))
    assert counts[0] >= 5 * 20  # in 5 steps
    assert counts[1] == 0
    assert "__setattr__" not in vars(L.LightningModule)  # it is put back


def test_lightning_still_refuses_to_clip_for_fused_optimizers(tmp_path):
    def fit(make_optimizer):
        trainer = make_trainer(tmp_path, precision="bf16-mixed", gradient_clip_val=1.0)
        trainer.fit(make_classifier(optimizer=make_optimizer), make_batches(), make_batches())

    with pytest.raises(RuntimeError, match="gradient clipping"):
        fit(lambda net: sgd(net, lr=0.01))
    fit(patches.clippable(lambda net: sgd(net, lr=0.01)))


class Save(Callback):
    """Saves at a hook of the first epoch."""

    def __init__(self, path, hook, *, step=None):
        def save(trainer, pl_module, *args):
            if trainer.current_epoch == 0 and step in (None, trainer.global_step):
                trainer.save_checkpoint(path)

        setattr(self, hook, save)


class Steps(Callback):
    """Notes the epoch and the targets of each training step, and counts validations."""

    def __init__(self):
        self.epochs, self.targets, self.num_validations = [], [], 0

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.epochs.append(trainer.current_epoch)
        self.targets.append(batch[1].tolist())

    def on_validation_start(self, trainer, pl_module):
        self.num_validations += 1


@pytest.fixture
def saved(tmp_path):
    """A checkpoint of a run of two epochs of five steps, saved at a hook."""

    def save(hook, *, step=None, **arguments):
        path = tmp_path / "saved.ckpt"
        trainer = make_trainer(tmp_path, max_epochs=2, callbacks=[Save(path, hook, step=step)], **arguments)
        trainer.fit(make_classifier(), make_batches(), make_batches())
        return path

    return save


def test_lightning_still_ends_an_epoch_twice_where_max_steps_is_set(saved, tmp_path):
    path = saved("on_train_epoch_end", max_steps=10)
    epochs = []
    for patch in (False, True):
        steps = Steps()
        trainer = make_trainer(tmp_path, max_epochs=2, max_steps=10, callbacks=[steps])
        if patch:
            patches.end_epochs_once(trainer)
        trainer.fit(make_classifier(), make_batches(), make_batches(), ckpt_path=path, weights_only=True)
        epochs.append((steps.epochs, trainer.fit_loop.epoch_progress.current.completed))
    assert epochs[0] != epochs[1]
    assert epochs[1] == ([1] * 5, 2)


def test_lightning_still_asks_the_first_rank_for_sigterm_at_each_step(tmp_path, monkeypatch):
    asked = []
    monkeypatch.setattr(torch.distributed, "broadcast", lambda tensor, src: asked.append(src))
    monkeypatch.setattr(torch.distributed, "is_initialized", lambda: True)
    monkeypatch.setattr(L.Trainer, "world_size", 2)
    for patch in (True, False):
        assert asked == []
        trainer = make_trainer(tmp_path)
        if patch:
            patches.no_sigterm_broadcasts(trainer)
        trainer.fit(make_classifier(), make_batches(), make_batches())
    assert asked == [0] * 5


def test_lightning_still_forgets_the_loaders_state_where_the_loader_is_made_early(saved, tmp_path):
    path = saved("on_train_batch_end", step=2)

    class Restore(Callback):
        def on_train_start(self, trainer, pl_module):
            patches.restore_loader_state(trainer)

    class Early(Callback):
        def setup(self, trainer, pl_module, stage):
            assert trainer.estimated_stepping_batches == 5

    targets = []
    for callbacks in ([Early()], [Early(), Restore()]):
        seen = Steps()
        trainer = make_trainer(tmp_path, callbacks=[*callbacks, seen])
        trainer.fit(make_classifier(), make_batches(), make_batches(), ckpt_path=path, weights_only=True)
        targets.append(seen.targets)
    whole = [batch[1].tolist() for batch in make_batches()]
    assert targets[1] == whole[2:]
    assert targets[0] != whole[2:]


def test_lightning_still_skips_a_validation_that_was_due_where_it_saved(saved, tmp_path):
    answers = {}

    class Ask(Callback):
        def on_train_batch_end(self, trainer, pl_module, *args):
            answers[trainer.global_step] = patches.can_resume_here(trainer)

    path = saved("on_train_batch_end", step=5, limit_val_batches=None)  # after the last step, before the validation
    steps = Steps()
    trainer = make_trainer(tmp_path, limit_val_batches=None, callbacks=[steps, Ask()])
    trainer.fit(make_classifier(), make_batches(), make_batches(), ckpt_path=path, weights_only=True)
    assert steps.num_validations == 0
    make_trainer(tmp_path, limit_val_batches=None, callbacks=[Ask()]).fit(
        make_classifier(), make_batches(), make_batches()
    )
    assert answers == {1: True, 2: True, 3: True, 4: True, 5: False}


def test_lightning_still_restores_within_fit(saved, tmp_path):
    entered = []

    class Watch:
        def __enter__(self):
            entered.append("in")

        def __exit__(self, kind, error, at):
            entered.append(kind)

    path = saved("on_train_epoch_end")
    checkpoint = torch.load(path, weights_only=True)
    checkpoint["optimizer_states"] = [{}]
    torch.save(checkpoint, path)
    trainer = make_trainer(tmp_path, max_epochs=2)
    with pytest.raises(KeyError, match="param_groups"), patches.watched_restoring(trainer, Watch):
        trainer.fit(make_classifier(), make_batches(), make_batches(), ckpt_path=path, weights_only=True)
    assert entered == ["in", None, "in", KeyError]


def test_lightning_still_takes_the_network_off_its_device_after_fit(tmp_path, monkeypatch):
    calls = []
    cpu = L.LightningModule.cpu
    monkeypatch.setattr(L.LightningModule, "cpu", lambda self: calls.append("cpu") or cpu(self))
    make_trainer(tmp_path).fit(make_classifier(), make_batches(), make_batches())
    assert calls == ["cpu"]
    trainer = make_trainer(tmp_path)
    with patches.staying_on_device(trainer):
        trainer.fit(make_classifier(), make_batches(), make_batches())
    assert calls == ["cpu"]


def test_torch_still_gives_up_compiling_after_some_versions():
    default = torch._dynamo.config.recompile_limit
    assert default < 64  # fewer than there are kinds of steps in a sweep
    with patches.unlimited_recompiles():
        assert torch._dynamo.config.recompile_limit > 1_000_000
    assert torch._dynamo.config.recompile_limit == default


def test_lightnings_writer_still_deletes_the_file_of_an_earlier_process(tmp_path):
    for make, kept in (
        (lambda: ExperimentWriter(str(tmp_path)), False),
        (lambda: patches.appending_writer(str(tmp_path), lambda *args: None), True),
    ):
        (tmp_path / "metrics.csv").write_text("loss,step\n0.5,1\n")
        with pytest.warns(UserWarning, match="exists and is not empty") if not kept else nullcontext():
            writer = make()
        writer.log_metrics({"loss": 0.25}, step=2)
        writer.save()
        with (tmp_path / "metrics.csv").open() as file:
            rows = [row["step"] for row in csv.DictReader(file)]
        assert rows == (["1", "2"] if kept else ["2"])


@pytest.mark.parametrize("silent", [False, True])
def test_tensorboards_thread_still_ends_with_a_traceback(silent, tmp_path, monkeypatch):
    printed = []
    monkeypatch.setattr(threading, "excepthook", lambda args: printed.append(args.exc_type))
    with patches.silent_event_writer() if silent else nullcontext():
        writer = SummaryWriter(str(tmp_path / "curves"))
    shutil.rmtree(tmp_path / "curves")
    writer.add_scalar("loss", 1.0)
    with pytest.raises(FileNotFoundError, match="No such file"):
        writer.flush()
    thread = writer.file_writer.event_writer._async_writer._worker
    thread.join(10)
    assert printed == ([] if silent else [FileNotFoundError])


@pytest.fixture
def ray_launcher(monkeypatch):
    """The module of Hydra's Ray launcher, which begins three jobs of names; Ray finds the first one killed."""
    pytest.importorskip("ray")
    core = pytest.importorskip("hydra_plugins.hydra_ray_launcher._core")
    happened = []

    def get(job):
        happened.append(f"asked for {job}")
        raise RuntimeError("killed")

    def launch_job_on_ray(hydra_context, remote, config, *others):
        happened.append(f"began {config.hydra.job.num}")
        return config.hydra.job.num

    monkeypatch.setattr(core, "ray", SimpleNamespace(get=get))
    monkeypatch.setattr(core, "launch_job_on_ray", launch_job_on_ray)
    monkeypatch.setattr(core, "start_ray", lambda options: happened.append("started"))
    monkeypatch.setattr(core, "configure_log", lambda *arguments: None)
    return core, happened


def test_hydras_ray_launcher_still_waits_for_its_jobs_in_turn_and_leaves_them_where_one_is_killed(
    ray_launcher, tmp_path
):
    core, happened = ray_launcher
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        loader = GlobalHydra.instance().config_loader()
        config = loader.load_configuration("train", [f"output_dir={tmp_path}"], run_mode=RunMode.MULTIRUN)
        launcher = SimpleNamespace(
            config=config,
            hydra_context=HydraContext(loader, Callbacks(config)),
            task_function=len,
            ray_cfg=OmegaConf.create({"init": {}, "remote": {}}),
        )
        jobs = [["seed=1"], ["seed=2"]]
        with pytest.raises(RuntimeError, match="killed"):
            core.launch(launcher, jobs, 4)
        assert happened == ["started", "began 4", "began 5", "asked for 4"]
        happened.clear()
        with patches.ray_jobs_by(lambda begin: [begin()], lambda job: ("result", *job)):
            assert core.launch(launcher, jobs, 4) == [("result", 4), ("result", 5)]
        assert happened == ["began 4", "began 5"]


def test_ray_still_takes_sigterm_and_prints_what_it_finds_killed():
    ray = pytest.importorskip("ray")
    assert "set_sigterm_handler(" in inspect.getsource(ray.init)
    assert "target=listen_error_messages" in inspect.getsource(ray._private.worker.connect)
    before = signal.getsignal(signal.SIGTERM)
    with patches.ray_keeps_to_itself():
        ray._private.utils.set_sigterm_handler(lambda signum, frame: None)
        assert signal.getsignal(signal.SIGTERM) is before
        assert ray._private.worker.listen_error_messages(None, None) is None


def test_submitit_still_asks_the_accounting_and_raises_where_a_job_is_lost(tmp_path):
    slurm = pytest.importorskip("submitit.slurm.slurm")
    job = slurm.SlurmJob(folder=tmp_path / "%j", job_id="7")
    own = slurm.SlurmJob.watcher
    assert own._make_command()[0] == "sacct"
    assert "raise job_exception" in inspect.getsource(slurm.SlurmJob.results)
    asked = []
    with patches.slurm_jobs_by(watcher := object(), lambda job, wait: asked.append(job) or ["lost"]):
        assert slurm.SlurmJob.watcher is watcher
        assert (job.results(), asked) == (["lost"], [job])
    assert slurm.SlurmJob.watcher is own
