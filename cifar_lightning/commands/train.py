"""``train(cfg)``: the function behind train.py, for tests, sweeps and benchmarks alike."""

import logging
import time
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import lightning as L
import torch
from omegaconf import DictConfig
from torch import nn

from cifar_lightning.callbacks.curves import TrainingCurves
from cifar_lightning.callbacks.saving import all_saved
from cifar_lightning.checkpoint.format import check_state, describe
from cifar_lightning.classifier import ImageClassifier, NonFiniteLoss
from cifar_lightning.cli.main import is_sweep, sweeper_optimises
from cifar_lightning.config.build import blame, build, build_partial
from cifar_lightning.config.overrides import argument
from cifar_lightning.config.resolve import check_ranges, resolved, take_measured
from cifar_lightning.data import ImageDataModule, spread
from cifar_lightning.device import forward_flops, sensible_threads, threads
from cifar_lightning.engine.assembly import build_classifier, build_data, check_sizes, image_shapes, measure, read_data
from cifar_lightning.engine.compile import (
    compile_in_place,
    no_garbage_collection,
    refuse_accumulation,
    refuse_without_compiler,
    with_compiled_update,
)
from cifar_lightning.engine.trainer import build_full_trainer, check_length, check_limits, refusals, staying_on_device
from cifar_lightning.engine.warmup import warm_up
from cifar_lightning.errors import RunError, UserError, one_line
from cifar_lightning.report.tables import announce, report
from cifar_lightning.runs.folder import CONFIG, LAST, claimed, record
from cifar_lightning.runs.loggers import CSV, TensorBoard, hyper_parameters
from cifar_lightning.runs.records import clocks, final_metrics, write_metrics
from cifar_lightning.runs.resume import _checkpoint_to_resume, _finished, refuse_changes
from cifar_lightning.runs.signals import Stopped
from cifar_lightning.typehints import fits

log = logging.getLogger(__name__)

NUM_INIT_IMAGES = 5_000
"""Training images that a network which is set from data sees, at most; evenly spread over all."""


def train(cfg: DictConfig) -> dict[str, Any]:
    """Train and test one classifier as configured; return what metrics.json holds.

    The test metrics are those of the last weights: nothing is selected on the test split.

    Raises:
        UserError: If the config, or the data it names, cannot be used.
    """
    started = time.perf_counter()
    config = resolved(cfg)
    if config["output_dir"] is None:
        raise UserError("output_dir must be a folder where train() is called directly, got null")
    folder = Path(config["output_dir"])
    benchmark = torch.backends.cudnn.benchmark
    try:
        with claimed(folder):
            return _train(cfg, config, started=started)
    except Stopped as stopped:
        if (folder / LAST).exists():
            one = f"python train.py {argument('resume', folder)}"
            all_jobs = f"the same command with {argument('output_dir', folder.parent)}"
            stopped.advice = f"; go on with: {all_jobs if is_sweep() else one}"
        raise
    finally:
        torch.backends.cudnn.benchmark = benchmark  # which Lightning sets for the next job of a sweep too


@dataclass(frozen=True)
class _Run:
    """What a run is made of, once all of it fits together.

    Attributes:
        config: Resolved, with what the data and the machine have decided.
        shapes: Shapes (C, H, W) of the augmented images, by epoch.
        flops: Of the forward pass of one image.
    """

    config: dict[str, Any]
    data: ImageDataModule
    classifier: ImageClassifier
    trainer: L.Trainer
    curves: TrainingCurves
    shapes: list[torch.Size]
    flops: int


def _train(cfg: DictConfig, config: dict[str, Any], *, started: float) -> dict[str, Any]:
    """``train`` in a folder that is held for this process."""
    output_dir = Path(config["output_dir"])
    before = _checkpoint_to_resume(output_dir, config["resume"])
    if before is not None:
        _take_over(cfg, config, before)
        if (metrics := _finished(output_dir, before, config)) is not None:
            return metrics
    with blame("seed"):
        L.seed_everything(config["seed"], workers=True, verbose=False)
    run = _built(config, before)
    goes_on = (output_dir / CONFIG).exists()  # with a checkpoint, or from the start
    if before is None:
        record(output_dir, cfg)
    compile_in_place(run.classifier.net, config["compile"])
    for logger in run.trainer.loggers:
        if goes_on and isinstance(logger, TensorBoard | CSV):
            logger.go_on(after_step=before["global_step"] if before else -1)
        logger.log_hyperparams(hyper_parameters(config))
    with threads(config["num_threads"]):
        announce(config, run.data, run.classifier, run.trainer, run.flops)
        _get_ready(run)
        set_from_data = _set_from_data(run.classifier, run.data) if before is None else 0.0
        with all_saved(run.trainer):
            _fit_and_test(run, ckpt_path=output_dir / LAST if before is not None else None)
        metrics = final_metrics(config, run.data, run.classifier, run.trainer, run.curves) | {
            "flops_per_image": run.flops,
            **clocks(run.curves, run.classifier, started=started, set_from_data=set_from_data),
        }
    for logger in run.trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.end_session()
    report(metrics, write_metrics(output_dir, metrics))
    return metrics


def _take_over(cfg: DictConfig, config: dict[str, Any], before: dict[str, Any]) -> None:
    """Put into the config what a run found out by itself before it was stopped; refuse what would make it another."""
    if cfg.trainer.precision == "auto":  # as it was resolved when the run started
        config["trainer"]["precision"] = before["config"]["trainer"].get("precision")
    take_measured(config, before["config"])
    refuse_changes(Path(config["output_dir"]), before["config"], config)
    config["num_threads"] = config["num_threads"] or before["config"].get("num_threads")
    check_ranges(config)


def _built(config: dict[str, Any], before: dict[str, Any] | None) -> _Run:
    """Data, classifier and Trainer of a config, and of the checkpoint that the run goes on from.

    What costs little is refused before the data are fetched.

    Raises:
        UserError: If one of them refuses its arguments, or they do not fit each other.
    """
    freeze = config["freeze"]
    if not fits(freeze, list[tuple[str, float]]):
        raise UserError(f"freeze must be parts of the network and fractions, as in [[conv1,0.5]], got {freeze}")
    data = build_data(config)
    curves = TrainingCurves()
    trainer = build_full_trainer(config, curves)
    refuse_accumulation(trainer, config["compile"])
    optimizer = with_compiled_update(build_partial(config["optimizer"], "optimizer"), config["compile"])
    with blame("optimizer", config["optimizer"]):
        optimizer(nn.Linear(1, 1))
    schedule = build(config["schedule"], "schedule") if config["schedule"] else None
    check_length(trainer, planned_by="schedule" if schedule else "freeze" if freeze else None)
    read_data(data, config)
    if before is not None and before["classes"] != list(data.classes):
        raise UserError(
            f"resume={config['output_dir']}: the run tells apart {before['classes']}, the data hold "
            f"{list(data.classes)}: a run goes on with the classes it began with"
        )
    measure(config, data)
    has_val = data.has_val and trainer.limit_val_batches != 0
    if sweeper_optimises() and not has_val:
        raise UserError("data.val_size must be above 0 for a sweeper that optimises val/acc: there are no such images")
    if not has_val:
        trainer.limit_val_batches = 0  # no validation loop, and no warning about an empty one
    check_limits(trainer, data)
    shapes = image_shapes(config, data)
    pretrained = before is None  # weights that would be replaced at once are not downloaded
    classifier = build_classifier(config, data, pretrained=pretrained, optimizer=optimizer, schedule=schedule)
    check_sizes(config, classifier, shapes, own_shape=data.arrays("train").images.shape[1:])
    with blame("freeze"):
        classifier.build_optimizer()
    flops = forward_flops(classifier.net, classifier.normalized(data.arrays("train").images[:1]))
    if config["num_threads"] is None:
        config["num_threads"] = sensible_threads(flops * data.batch_size)
    classifier.description = describe(config, data.classes)
    if before is not None:
        check_state(Path(config["output_dir"]) / LAST, before, classifier)
    return _Run(config, data, classifier, trainer, curves, shapes, flops)


def _get_ready(run: _Run) -> None:
    """Bring network and images to the device, and have done what is slow only the first time."""
    config, device = run.config, run.trainer.strategy.root_device
    for split in ("train", "test"):
        run.data.placed(split, device)
    run.classifier.to(device)
    if config["compile"] or device.type == "cuda":
        _set_from_data(run.classifier, run.data)  # for the libraries that it loads: the one that counts comes later
        collected = no_garbage_collection() if config["compile"] else nullcontext()
        with refuse_without_compiler(config["compile"]), collected:
            warm_up(run.classifier, run.trainer, run.data, run.shapes, tta=config["tta"])


def _set_from_data(classifier: ImageClassifier, data: ImageDataModule) -> float:
    """Let a network that wants it see training images; gives the seconds that took."""
    started = time.perf_counter()
    if hasattr(classifier.net, "init_from_data"):
        index = data.index["train"]
        images = data.placed("train", classifier.device).images[index[spread(len(index), NUM_INIT_IMAGES)]]
        classifier.net.init_from_data(classifier.normalized(images))  # type: ignore[operator]
    return time.perf_counter() - started


def _fit_and_test(run: _Run, *, ckpt_path: Path | None) -> None:
    trainer, classifier, data = run.trainer, run.classifier, run.data
    try:
        with refusals(), staying_on_device(trainer):
            trainer.fit(classifier, data, ckpt_path=ckpt_path, weights_only=True)
    except NonFiniteLoss as error:
        raise RunError(str(error)) from error
    except (LookupError, TypeError, ValueError, AttributeError, RuntimeError) as error:
        if ckpt_path is None or classifier.is_training_restored or isinstance(error, torch.OutOfMemoryError):
            raise
        raise UserError(f"{ckpt_path} cannot be resumed from: {one_line(error)}") from error
    if trainer.global_step == 0:
        raise UserError("trainer: nothing was trained; max_time must leave a step to do")
    is_judged = "val" in classifier.evaluations and classifier.judged_at["val"] == trainer.global_step
    if trainer.limit_val_batches and not is_judged:  # training ended between validations, or before a kill
        trainer.validate_loop.inference_mode = False  # as within fit, for which it has been compiled
        with staying_on_device(trainer):
            trainer.validate(classifier, data, verbose=False)
    classifier.tta = run.config["tta"]  # not before: the validations of each epoch would take six times as long
    trainer.test(classifier, data, verbose=False)
