"""Everything private of the libraries (Lightning, Hydra, its launchers, torch, ...) that the project touches.

One function or class for each, with the version it is for and the reason. ``tests/test_patches.py`` has a test for each
that fails once it is not needed any more. Lightning takes seconds to import, and compare.py does without it.
"""

from __future__ import annotations

import csv
import itertools
from argparse import ArgumentParser
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, suppress
from pathlib import Path
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any
from unittest.mock import patch

import torch
from hydra._internal.utils import get_args_parser
from hydra.core.config_store import ConfigStore
from hydra.core.plugins import Plugins
from hydra.plugins.sweeper import Sweeper
from omegaconf import DictConfig
from torch import nn

if TYPE_CHECKING:
    import lightning as L
    from lightning.pytorch.loggers.csv_logs import ExperimentWriter


def hydra_flags() -> ArgumentParser:
    """Hydra's own parser of its flags.

    Hydra 1.3 calls ``parse_args``, which takes a flag between two overrides for the end of them and writes its usage
    over several lines.
    """
    return get_args_parser()


def prefer_own_launchers(names: Sequence[str]) -> None:
    """Have Hydra take a launcher's config from conf/ alone.

    Hydra 1.3 checks it against the one of the plugin that has the same name, and warns at each job that it does.
    """
    Plugins.instance()  # registers them
    group = ConfigStore.instance().repo.get("hydra", {}).get("launcher", {})
    for name in names:
        group.pop(f"{name}.yaml", None)


@contextmanager
def before_sweeps(refuse: Callable[[DictConfig], None], prepare: Callable[[Sweeper], None]) -> Iterator[None]:
    """Have something done before a sweeper writes into the folder of a sweep, and launches its jobs.

    Hydra 1.3 has a callback there. Of an exception in it no more than a warning is left, and it gets no sweeper.

    Args:
        refuse: Called with the sweep's config, before its sweeper and launcher are made; may raise, which ends it.
        prepare: Called with the sweeper, which has its config and launcher; may raise, which ends the sweep.
    """
    instantiate = Plugins.instantiate_sweeper

    def instantiate_prepared(plugins: Plugins, **options: Any) -> Sweeper:
        refuse(options["config"])
        sweeper = instantiate(plugins, **options)
        prepare(sweeper)
        return sweeper

    with patch.object(Plugins, "instantiate_sweeper", instantiate_prepared):
        yield


@contextmanager
def watched_jobs(
    watch: Callable[[DictConfig, int], None], is_finished: Callable[[Sequence[str], int], bool]
) -> Iterator[None]:
    """Show each job of a sweep, composed, with its number, before the first of them runs.

    Hydra 1.3 composes the jobs of a batch beforehand, to find errors early, and drops them. To compose them once more
    takes as long as Hydra itself needs for a job. It does so batch by batch, also where its sweeper knows all batches.

    Args:
        watch: Called with a job's config, ``hydra`` in it, and its number; may raise, which ends the sweep.
        is_finished: Takes a job's overrides and number; the job is neither composed nor shown if it is finished.
    """
    validate, numbers = Sweeper.validate_batch_is_legal, itertools.count()

    def validate_watched(sweeper: Sweeper, batch: Sequence[Sequence[str]]) -> None:
        assert sweeper.hydra_context is not None
        if type(sweeper).__name__ == "BasicSweeper":  # the class itself is not the one that an import gives
            basic: Any = sweeper
            batch = list(itertools.chain(*basic.overrides)) if basic.batch_index == 1 else []
        loader = sweeper.hydra_context.config_loader
        load = loader.load_sweep_config

        def load_watched(master_config: DictConfig, sweep_overrides: list[str]) -> DictConfig:
            number = next(numbers)
            if is_finished(sweep_overrides, number):
                return master_config  # which is dropped like any other
            config = load(master_config, sweep_overrides)
            watch(config, number)
            return config

        with patch.object(loader, "load_sweep_config", load_watched):
            validate(sweeper, batch)

    with patch.object(Sweeper, "validate_batch_is_legal", validate_watched):
        yield


@contextmanager
def quick_hook_names() -> Iterator[None]:
    """Have Lightning note the name of the running hook without a look at the module's parameters.

    Lightning 2.6 sets ``_current_fx_name`` some forty times a step, each time through ``nn.Module.__setattr__``: 5 % of
    a step of the tutorial's network.
    """
    import lightning as L

    through_module = nn.Module.__setattr__

    def __setattr__(self: nn.Module, name: str, value: Any) -> None:
        if name == "_current_fx_name":
            object.__setattr__(self, name, value)
        else:
            through_module(self, name, value)

    L.LightningModule.__setattr__ = __setattr__  # type: ignore[method-assign]
    try:
        yield
    finally:
        del L.LightningModule.__setattr__


def clippable(make_optimizer: Callable[[nn.Module], torch.optim.Optimizer]) -> Callable[[nn.Module], Any]:
    """A builder of optimizers whose gradients Lightning agrees to clip in mixed precision.

    Fused kernels could unscale fp16 gradients themselves. Lightning 2.6 then refuses to clip, in bf16 too, which scales
    nothing.
    """

    def make(net: nn.Module) -> torch.optim.Optimizer:
        optimizer = make_optimizer(net)
        optimizer._step_supports_amp_scaling = False  # type: ignore[attr-defined]
        return optimizer

    return make


def end_epochs_once(trainer: L.Trainer) -> None:
    """Let a run that is resumed at the end of an epoch begin the next one.

    Where ``max_steps`` is set, Lightning 2.6 takes the checkpoint of an epoch's end for one from within the epoch, and
    ends it a second time.
    """
    trainer.fit_loop._iteration_based_training = lambda: False  # type: ignore[method-assign]


def no_sigterm_broadcasts(trainer: L.Trainer) -> None:
    """Do without the question, before each step of several ranks, whether the first one has got SIGTERM.

    Lightning 2.6 waits for the device to answer it, and goes on where the other ranks are gone. Signals are handled in
    ``callbacks.saving``.
    """
    trainer.fit_loop.epoch_loop._broadcast_sigterm_tensor = lambda: None  # type: ignore[method-assign]


def restore_loader_state(trainer: L.Trainer) -> None:
    """Give the training loader its state of the checkpoint; called at the start of training.

    Lightning 2.6 does so where it makes the loader. ``estimated_stepping_batches`` makes it earlier, before the
    checkpoint is read.
    """
    trainer.fit_loop._load_combined_loader_states()


def can_resume_here(trainer: L.Trainer) -> bool:
    """Whether Lightning would resume from the end of this training step as if nothing had happened.

    It would not while gradients are accumulated, where a validation is due, or at the end of the epoch.
    Lightning 2.6 has no public word for these.
    """
    loop = trainer.fit_loop.epoch_loop
    fetcher = trainer.fit_loop._data_fetcher
    assert fetcher is not None
    return not (loop._should_accumulate() or loop._is_training_done or loop._should_check_val_fx(fetcher))


@contextmanager
def watched_restoring(trainer: L.Trainer, watch: Callable[[], AbstractContextManager[Any]]) -> Iterator[None]:
    """Put a context around what Lightning restores from a checkpoint, and around nothing else of ``fit``.

    Lightning 2.6 restores in the midst of ``fit``, so that around the whole call a broken file and a bug in a training
    step look alike.
    """
    connector, loop = trainer._checkpoint_connector, trainer.fit_loop
    restore_objects, restore_progress = connector._restore_modules_and_callbacks, connector.restore_training_state
    restore_loader = loop._load_combined_loader_states

    def watched_objects(*args: Any, **options: Any) -> None:
        with watch():
            restore_objects(*args, **options)

    def watched_progress() -> None:
        with watch():
            restore_progress()

    def watched_loader() -> None:
        with watch():
            restore_loader()

    connector._restore_modules_and_callbacks = watched_objects  # type: ignore[method-assign]
    connector.restore_training_state = watched_progress  # type: ignore[method-assign]
    loop._load_combined_loader_states = watched_loader  # type: ignore[method-assign]
    try:
        yield
    finally:
        del connector._restore_modules_and_callbacks, connector.restore_training_state
        del loop._load_combined_loader_states


@contextmanager
def staying_on_device(trainer: L.Trainer) -> Iterator[None]:
    """Have the network stay on its device after ``fit``, for what follows.

    Lightning 2.6 moves it to the CPU. It would come back to another place in memory, where CUDA graphs are recorded
    again.
    """
    strategy, teardown = trainer.strategy, trainer.strategy.teardown
    strategy.teardown = lambda: None  # type: ignore[method-assign]
    try:
        yield
    except BaseException:
        teardown()
        raise
    finally:
        del strategy.teardown


@contextmanager
def unlimited_recompiles() -> Iterator[None]:
    """Let ``torch.compile`` compile a network for each kind of step, in each job of a sweep.

    torch 2.15 gives up after eight versions of one function, and quietly runs the next ones uncompiled. The kinds of
    steps of a run are counted beforehand, so there is no need of a limit.
    """
    with torch._dynamo.config.patch(recompile_limit=2**31, accumulated_recompile_limit=2**31):
        yield


@contextmanager
def silent_event_writer() -> Iterator[None]:
    """Have the thread of an event file that is opened meanwhile end without a traceback where it cannot write.

    TensorBoard 2.21 keeps its error for the next caller, and raises it in the thread as well, which Python prints.
    """
    from tensorboard.summary.writer.event_file_writer import _AsyncWriterThread  # late, for runs without curves

    run = _AsyncWriterThread.run

    def run_silently(thread: _AsyncWriterThread) -> None:
        with suppress(OSError):
            run(thread)

    with patch.object(_AsyncWriterThread, "run", run_silently):
        yield


def appending_writer(
    log_dir: str, write_rows: Callable[[Path, list[str], list[dict[str, str]]], None]
) -> ExperimentWriter:
    """Lightning's writer of metrics.csv, which appends to the file of an earlier process; Lightning 2.6 deletes it.

    Args:
        log_dir: Folder of the file.
        write_rows: ``(path, field names, rows)``; replaces the file when a metric with a new name comes.
    """
    from lightning.pytorch.loggers.csv_logs import ExperimentWriter

    class AppendingWriter(ExperimentWriter):
        def _check_log_dir_exists(self) -> None:
            path = Path(self.metrics_file_path)
            if path.exists():
                with path.open(newline="", encoding="utf-8") as file:
                    self.metrics_keys = next(csv.reader(file), [])

        def _rewrite_with_new_header(self, fieldnames: list[str]) -> None:
            path = Path(self.metrics_file_path)
            with path.open(newline="", encoding="utf-8") as file:
                rows = list(csv.DictReader(file))
            write_rows(path, fieldnames, rows)

    return AppendingWriter(log_dir=log_dir)


@contextmanager
def slurm_jobs_by(watcher: Any, results: Callable[[Any, Callable[[], list[Any]]], list[Any]]) -> Iterator[None]:
    """Have submitit follow jobs of Slurm, and wait for their results, in another way.

    submitit 1.5 asks the accounting alone, which not each cluster has, and raises where a job is lost.

    Args:
        watcher: Takes the place of submitit's, which asks how jobs are.
        results: Called with a job, and with what waits for its results and raises; gives the results.
    """
    from submitit.slurm.slurm import SlurmJob  # late, as it is an extra

    wait = SlurmJob.results
    with (
        patch.object(SlurmJob, "watcher", watcher),
        patch.object(SlurmJob, "results", lambda job: results(job, lambda: wait(job))),
    ):
        yield


@contextmanager
def ray_jobs_by(submit: Callable[[Callable[[], Any]], Any], result_of: Callable[[Any], Any]) -> Iterator[None]:
    """Have Hydra's Ray launcher leave to others when a job begins, and how its end is waited for.

    Version 1.2.2 hands all jobs to Ray, then waits for one after the other. So it takes no notice of one that ends
    before an earlier one, and where a process is killed it leaves the other jobs alone.

    Args:
        submit: Called with each job, in their order, which begins when it is called and gives Ray's reference to it.
        result_of: Called with what ``submit`` has given for each; gives what the job returns.
    """
    from hydra_plugins.hydra_ray_launcher import _core  # late, as it is an extra

    launch = _core.launch_job_on_ray

    def launch_by(*arguments: Any) -> Any:
        return submit(lambda: launch(*arguments))

    with (
        patch.object(_core, "launch_job_on_ray", launch_by),
        patch.object(_core, "start_ray", lambda options: None),  # which would say that it is running
        patch.object(_core, "ray", SimpleNamespace(get=result_of)),
    ):
        yield


@contextmanager
def ray_keeps_to_itself() -> Iterator[None]:
    """Have ``ray.init`` leave the handler of SIGTERM as it is, and show nothing where a process is killed.

    The handler of Ray 2.60 ends this process. Of a killed process it prints a paragraph, whatever its options.
    """
    from ray._private import utils, worker  # late, as it is an extra

    with (
        patch.object(utils, "set_sigterm_handler", lambda handler: None),
        patch.object(worker, "listen_error_messages", lambda worker, stopped: None),
    ):
        yield
