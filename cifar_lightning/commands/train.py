"""``train(cfg)``: the function behind train.py, for tests, sweeps, notebooks and benchmarks alike."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig, OmegaConf

from cifar_lightning import STARTED, ranks
from cifar_lightning.callbacks.finite import NonFiniteLoss
from cifar_lightning.callbacks.pictures import Pictures
from cifar_lightning.callbacks.saving import all_saved
from cifar_lightning.checkpoint.format import restoring
from cifar_lightning.config.build import blame
from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.config.overrides import argument
from cifar_lightning.config.resolve import Settings, as_plain, frozen, resolve, with_folder
from cifar_lightning.data import spread
from cifar_lightning.device import device_name, keeping_freed_memory, restored_backends, threads
from cifar_lightning.engine.assembly import Parts, assemble, refuse_early
from cifar_lightning.engine.compile import compile_in_place, no_garbage_collection, refuse_without_compiler
from cifar_lightning.engine.launch import RankLost, joined, launch, ranks_to_start
from cifar_lightning.engine.trainer import refusals
from cifar_lightning.engine.warmup import warm_up
from cifar_lightning.errors import RunError, UserError
from cifar_lightning.patches import quick_hook_names, staying_on_device, unlimited_recompiles, watched_restoring
from cifar_lightning.report.console import on_screen
from cifar_lightning.report.tables import announce, final_table
from cifar_lightning.runs.failure import forget_failure, noted_failure
from cifar_lightning.runs.folder import CONFIG, LAST, held_by_first, record
from cifar_lightning.runs.jobkeys import record_key
from cifar_lightning.runs.loggers import CSV, TensorBoard, hyper_parameters
from cifar_lightning.runs.metrics_file import finished_metrics, provenance, write_metrics
from cifar_lightning.runs.next_steps import next_steps
from cifar_lightning.runs.resume import checkpoint_to_resume, finished, take_over
from cifar_lightning.runs.signals import Stopped
from cifar_lightning.runs.sweep import folder_of_job, placed

log = logging.getLogger(__name__)

NUM_INIT_IMAGES = 5_000
"""Training images that a network which is set from data sees, at most; evenly spread over all."""


def train(cfg: DictConfig, invocation: Invocation = FROM_PYTHON) -> dict[str, Any]:
    """Train and test one classifier as configured; return what metrics.json holds.

    The test metrics are those of the last weights: nothing is selected on the test split. Pictures of the test are
    drawn last, once the numbers are on the disk and shown. So no clock counts them, and one that fails is a warning.

    Args:
        cfg: As ``config.schema.compose`` or the command line makes it; it is not changed.
        invocation: How the command was called.

    Raises:
        UserError: If the config, or the data it names, cannot be used.
        RunError: If training fails for a reason that is told in one line, such as a full disk.
    """
    began = Began.now_here()
    with joined():
        cfg, metrics = ranks.from_first(lambda: _placed(cfg, invocation))
        if metrics is not None:
            return metrics
        folder = Path(cfg.output_dir)
        with noted_failure(folder, invocation) if ranks.is_first() else nullcontext():
            config = resolve(cfg)
            if (num := ranks_to_start(config.trainer)) == 1:
                return _train(cfg, config, invocation, began)
            refuse_early(config)
            values = OmegaConf.to_container(cfg), as_plain(config), invocation.plain(), began
            with _advice_to_resume(folder, invocation):
                return launch(_train_as_rank, *values, num=num)


def _placed(cfg: DictConfig, invocation: Invocation) -> tuple[DictConfig, dict[str, Any] | None]:
    """The config with the run's folder; and the metrics of a job of a sweep that is done already."""
    if invocation.is_sweep and not invocation.is_placed:
        job = folder_of_job(cfg, invocation)
        if (metrics := finished_metrics(job)) is not None:
            log.info("%s is done already", job)
            record_key(job, invocation.job_key)  # which may have been another, or none
            return cfg, metrics
        cfg = placed(cfg, job)
    return with_folder(cfg), None


def _train_as_rank(
    cfg: dict[str, Any], config: dict[str, Any], invocation: dict[str, Any], began: "Began"
) -> dict[str, Any]:
    """``_train`` in a process that has been started for it, which gets plain values."""
    made = OmegaConf.create(cfg)
    return _train(made, Settings(**frozen(config)), Invocation.of_plain(invocation), began.in_this_process())


def _train(cfg: DictConfig, config: Settings, invocation: Invocation, began: "Began") -> dict[str, Any]:
    """Train and test in this process, be it one of several ranks."""
    folder = Path(config.output_dir)
    with on_screen(), held_by_first(folder), restored_backends(), _advice_to_resume(folder, invocation):
        if ranks.is_first():
            forget_failure(folder)
        before = checkpoint_to_resume(folder, config.resume)
        if before is not None:
            config = take_over(config, before["settings"])
            if (metrics := finished(config, before)) is not None:
                return metrics
        with blame("seed"):
            L.seed_everything(config.seed, workers=True, verbose=False)
        parts = assemble(config, before, invocation)
        is_continued = (folder / CONFIG).exists()  # from a checkpoint, or from the start
        if before is None and ranks.is_first():
            record(folder, cfg, invocation)
            record_key(folder, invocation.job_key)
        _start_loggers(parts, after_step=before["global_step"] if before else -1, is_continued=is_continued)
        metrics = _run(parts, resumes=before is not None)
        if not ranks.is_first():
            return metrics
        metrics |= provenance(invocation) | _clocks(began, invocation, resumes=before is not None)
        final_table(metrics, write_metrics(folder, metrics))
        if not invocation.is_sweep:
            next_steps(config, metrics, invocation, num_classes=len(parts.data.classes))
        _draw_test(parts)  # once the numbers are safe; so no clock counts it
        for logger in parts.trainer.loggers:
            if isinstance(logger, TensorBoard):
                logger.end_session()
    return metrics


@dataclass(frozen=True)
class Began:
    """When a command began, and the process that it runs in, by the clock of ``time.perf_counter``; and by the wall."""

    command: float
    process: float
    now: float
    wall: float

    @classmethod
    def now_here(cls) -> "Began":
        """For a command that begins now in this process."""
        now = time.perf_counter()
        return cls(now, STARTED, now, time.time())

    def in_this_process(self) -> "Began":
        """The same in a process that the other one has started, whose clock may be another."""
        shift = time.perf_counter() - (self.now + time.time() - self.wall)
        return Began(self.command + shift, self.process + shift, self.now + shift, self.wall)


def _clocks(began: Began, invocation: Invocation, *, resumes: bool) -> dict[str, float | None]:
    """Seconds of the command until now; null where they would be those of a resumed run's last process alone."""
    if resumes:  # train_seconds is kept in the checkpoint
        return dict.fromkeys(("warm_seconds", "seconds", "process_seconds"))
    now = time.perf_counter()
    # Jobs of a sweep may share a process.
    process_seconds = None if invocation.is_sweep else now - began.process
    return {"seconds": now - began.command, "process_seconds": process_seconds}


@contextmanager
def _advice_to_resume(folder: Path, invocation: Invocation) -> Iterator[None]:
    """Say, where a signal stops the run or kills a rank of it, how it is resumed."""

    def advice() -> str:
        one = f"python train.py {argument('resume', folder)}"
        all_jobs = f"the same command with {argument('output_dir', folder.parent)}"
        is_saved = (folder / LAST).exists()
        return f"; resume with: {all_jobs if invocation.is_sweep else one}" if is_saved else ""

    try:
        yield
    except Stopped as stopped:
        stopped.advice = advice()
        raise
    except RankLost as lost:
        raise RunError(f"{lost}{advice()}") from lost


def _start_loggers(parts: Parts, *, after_step: int, is_continued: bool) -> None:
    for logger in parts.trainer.loggers:
        if is_continued and isinstance(logger, TensorBoard | CSV):
            logger.resume(after_step=after_step)
        logger.log_hyperparams(hyper_parameters(parts.settings))


def _draw_test(parts: Parts) -> None:
    for callback in parts.trainer.callbacks:  # type: ignore[attr-defined]
        if isinstance(callback, Pictures):
            callback.draw_test(parts.trainer, parts.classifier)


def _run(parts: Parts, *, resumes: bool) -> dict[str, Any]:
    """Train, validate and test, on a process set up for it and put back afterwards; return the figures."""
    settings, device = parts.settings, parts.trainer.strategy.root_device
    recompiles = unlimited_recompiles() if settings.compile else nullcontext()
    with threads(settings.num_threads), keeping_freed_memory(device), quick_hook_names(), recompiles:
        announce(settings, parts.data, parts.classifier, parts.trainer, parts.flops)
        _get_ready(parts)
        seconds_of_init = 0.0 if resumes else _set_from_data(parts)
        with all_saved(parts.trainer):
            _fit_and_test(parts, ckpt_path=Path(settings.output_dir) / LAST if resumes else None)
        return _figures(parts, seconds_of_init=seconds_of_init)


def _get_ready(parts: Parts) -> None:
    """Bring network and images to the device, and have done what is slow only the first time."""
    settings, device = parts.settings, parts.trainer.strategy.root_device
    compile_in_place(parts.classifier.net, settings.compile)
    for split in ("train", "test"):
        parts.data.placed(split, device)
    parts.classifier.to(device)
    if settings.compile or device.type == "cuda":
        _set_from_data(parts)  # for the libraries it loads: the one that counts comes later
        collected = no_garbage_collection() if settings.compile else nullcontext()
        with refuse_without_compiler(settings.compile), collected:
            warm_up(parts.classifier, parts.trainer, parts.data, settings.trainer, parts.shapes, tta=settings.tta)


def _set_from_data(parts: Parts) -> float:
    """Let a network that wants it, and has no weights yet, see training images; gives the seconds that took."""
    started = time.perf_counter()
    classifier, data = parts.classifier, parts.data
    if hasattr(classifier.net, "init_from_data") and parts.settings.init is None:
        index = data.index["train"]
        images = data.placed("train", classifier.device).gather(index[spread(len(index), NUM_INIT_IMAGES)])
        classifier.net.init_from_data(classifier.normalized(images))  # type: ignore[operator]
    return time.perf_counter() - started


def _fit_and_test(parts: Parts, *, ckpt_path: Path | None) -> None:
    trainer, classifier, data = parts.trainer, parts.classifier, parts.data
    restored = watched_restoring(trainer, lambda: restoring(ckpt_path)) if ckpt_path else nullcontext()
    try:
        with refusals(), staying_on_device(trainer), restored:
            trainer.fit(classifier, data, ckpt_path=ckpt_path, weights_only=True)
    except NonFiniteLoss as error:
        raise RunError(str(error)) from error
    if trainer.global_step == 0:
        raise UserError("trainer: nothing was trained; max_time must leave a step to do")
    is_validated = "val" in classifier.evaluations and parts.curves.evaluated_at["val"] == trainer.global_step
    if trainer.limit_val_batches and not is_validated:  # training ended between validations, or before a kill
        trainer.validate_loop.inference_mode = False  # as within fit, for which it has been compiled
        with staying_on_device(trainer):
            trainer.validate(classifier, data, verbose=False)
    classifier.tta = parts.settings.tta  # not before: the validations of each epoch would take six times as long
    trainer.test(classifier, data, verbose=False)


def _figures(parts: Parts, *, seconds_of_init: float) -> dict[str, Any]:
    """Figures of the last epoch and of each split, and the clocks as speedruns count them."""
    settings, trainer, clock, curves = parts.settings, parts.trainer, parts.clock, parts.curves
    figures: dict[str, Any] = {name: value for name, value in curves.epoch.items() if name != "images_per_second"}
    for split, evaluation in parts.classifier.evaluations.items():
        figures |= parts.classifier.scalars(split)
        figures[f"num_{split}_images"] = evaluation.num_images
    if "val" in parts.classifier.evaluations:
        figures["seconds_to_val_acc"] = {f"{acc:.2f}": seconds for acc, seconds in clock.seconds_to.items()}
    return figures | {
        "name": settings.name,
        "data": parts.data.name,
        "data_note": parts.data.note,
        "fingerprint": dict(settings.fingerprint),
        "seed": settings.seed,
        # current_epoch lags behind where there was nothing left to train after resuming
        "epochs": trainer.fit_loop.epoch_progress.current.processed,  # type: ignore[attr-defined]
        "steps": trainer.global_step,
        "train_seconds": clock.seconds,
        "images_per_second": curves.num_images / clock.seconds,
        "warm_seconds": None if clock.tested_at is None else seconds_of_init + clock.tested_at - clock.began_at,
        "device": device_name(trainer.strategy.root_device),
        "num_devices": ranks.world_size(),
        "precision": str(trainer.precision),
        "flops_per_image": parts.flops,
        "temperature": parts.classifier.temperature,
        "output_dir": settings.output_dir,
    }
