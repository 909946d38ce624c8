"""``train(cfg)``: the function behind train.py, for tests, sweeps and benchmarks alike."""

import logging
import time
from pathlib import Path
from typing import Any

import lightning as L
import torch
from lightning.pytorch.callbacks import Callback
from omegaconf import DictConfig
from torch import nn

from cifar_lightning import models
from cifar_lightning.callbacks import TrainingCurves
from cifar_lightning.checkpoint import check_state, describe, read_state
from cifar_lightning.classifier import ImageClassifier, NonFiniteLoss
from cifar_lightning.compilation import MODES, compile_in_place, warm_up
from cifar_lightning.config import RunError, UserError, argument, blame, build, build_partial, one_line, plain
from cifar_lightning.data import CIFAR10DataModule, channel_statistics
from cifar_lightning.devices import MAX_THREADS, fast_precision, forward_flops, sensible_threads, threads
from cifar_lightning.entry import is_sweep, sweeper_optimises
from cifar_lightning.hints import fits
from cifar_lightning.loggers import CSV, TensorBoard
from cifar_lightning.progress import EpochProgress
from cifar_lightning.records import relative, write_metrics
from cifar_lightning.reporting import announce, clocks, final_metrics, hyper_parameters, report
from cifar_lightning.runs import CONFIG, LAST, claimed, finished_metrics, record, refuse_changes, refuse_used
from cifar_lightning.saving import RunCheckpoints
from cifar_lightning.stopping import Stopped
from cifar_lightning.trainer import build_trainer, check_length, check_limits, refusals

log = logging.getLogger(__name__)

NUM_INIT_IMAGES = 5_000
"""Training images that a network which is set from data sees, at most."""

AUTO = "auto"
"""In ``normalize``: measured on the training split."""

NUM_CHECKED_EPOCHS = 1_000
"""Epochs whose augmentation is tried before training, at most: ``trainer.max_epochs`` may stand for "no end"."""


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
    try:
        with claimed(folder):
            return _train(cfg, config, started=started)
    except Stopped as stopped:
        if (folder / LAST).exists():
            one = f"python train.py {argument('resume', folder)}"
            all_jobs = f"the same command with {argument('output_dir', folder.parent)}"
            stopped.advice = f"; go on with: {all_jobs if is_sweep() else one}"
        raise


def _train(cfg: DictConfig, config: dict[str, Any], *, started: float) -> dict[str, Any]:
    """``train`` in a folder that is held for this process."""
    output_dir = Path(config["output_dir"])
    before = _checkpoint_to_resume(output_dir, config["resume"])
    if before is not None:
        if cfg.trainer.precision == "auto":  # as it was resolved when the run started
            config["trainer"]["precision"] = before["config"]["trainer"].get("precision")
        _take_measured(config, before["config"])
        refuse_changes(output_dir, before["config"], config)
        if (metrics := _finished(output_dir, before, config)) is not None:
            return metrics
        config["num_threads"] = config["num_threads"] or before["config"].get("num_threads")
        _check_ranges(config)
    with blame("seed"):
        L.seed_everything(config["seed"], workers=True, verbose=False)

    freeze = config["freeze"]
    if not fits(freeze, list[tuple[str, float]]):
        raise UserError(f"freeze must be parts of the network and fractions, as in [[conv1,0.5]], got {freeze}")
    data = _build_data(config)
    curves = TrainingCurves()
    trainer = _build_trainer(config, curves)
    optimizer = build_partial(config["optimizer"], "optimizer")
    with blame("optimizer", config["optimizer"]):  # refuse a bad hyper-parameter before the data are fetched
        optimizer(nn.Linear(1, 1))
    schedule = build(config["schedule"], "schedule") if config["schedule"] else None
    check_length(trainer, planned_by="schedule" if schedule else "freeze" if freeze else None)
    read_data(data, config)
    if before is not None and before["classes"] != list(data.classes):
        raise UserError(
            f"resume={output_dir}: the run tells apart {before['classes']}, the data hold {list(data.classes)}: a run "
            "goes on with the classes it began with"
        )
    _measure(config, data)
    has_val = data.has_val and trainer.limit_val_batches != 0
    if sweeper_optimises() and not has_val:
        raise UserError("data.val_size must be above 0 for a sweeper that optimises val/acc: there are no such images")
    if not has_val:
        trainer.limit_val_batches = 0  # no validation loop, and no warning about an empty one
    check_limits(trainer, data)
    shapes = _shapes(config, data)
    pretrained = before is None  # weights that would be replaced at once are not downloaded
    classifier = _build_classifier(config, data, pretrained=pretrained, optimizer=optimizer, schedule=schedule)
    _check_sizes(config, classifier, shapes, own_shape=data.arrays("train").images.shape[1:])
    with blame("freeze"):
        classifier.build_optimizer()
    flops = forward_flops(classifier.net, classifier.normalized(data.arrays("train").images[:1]))
    if config["num_threads"] is None:
        config["num_threads"] = sensible_threads(flops * data.batch_size)
    classifier.description = describe(config, data.classes)
    if before is not None:
        check_state(output_dir / LAST, before, classifier)
    goes_on = (output_dir / CONFIG).exists()  # with a checkpoint, or from the start
    if before is None:
        record(output_dir, cfg)
    compile_in_place(classifier.net, config["compile"])

    for logger in trainer.loggers:
        if goes_on and isinstance(logger, TensorBoard | CSV):
            logger.go_on(after_step=before["global_step"] if before else -1)
        logger.log_hyperparams(hyper_parameters(config))
    with threads(config["num_threads"]):
        announce(config, data, classifier, trainer, flops)
        if config["compile"]:
            warm_up(classifier, trainer, data, shapes)
        set_up = time.perf_counter()
        ckpt_path = output_dir / LAST if before is not None else None
        if ckpt_path is None:
            _set_from_data(classifier, data)
        _fit_and_test(trainer, classifier, data, has_val=has_val, tta=config["tta"], ckpt_path=ckpt_path)
        metrics = final_metrics(config, data, classifier, trainer, curves) | {
            "flops_per_image": flops,
            **clocks(curves, started=started, set_up=set_up),
        }
    for logger in trainer.loggers:
        if isinstance(logger, TensorBoard):
            logger.end_session()
    report(metrics, write_metrics(output_dir, metrics))
    return metrics


def _shapes(config: dict[str, Any], data: CIFAR10DataModule) -> list[torch.Size]:
    """Shapes (C, H, W) of the augmented images, by epoch; of the first ``NUM_CHECKED_EPOCHS`` at most.

    Raises:
        UserError: If the augmentation does not fit the images.
    """
    image = data.arrays("train").images[:1]
    max_epochs = config["trainer"]["max_epochs"]
    num_epochs = min(max_epochs, NUM_CHECKED_EPOCHS) if max_epochs and max_epochs > 0 else NUM_CHECKED_EPOCHS
    if data.augment is None:
        return [image.shape[1:]] * num_epochs
    with blame("augment", config["augment"]):
        return [data.augment(image, epoch, torch.Generator()).shape[1:] for epoch in range(num_epochs)]


def _check_sizes(
    config: dict[str, Any], classifier: ImageClassifier, shapes: list[torch.Size], *, own_shape: torch.Size
) -> None:
    """Refuse, before a long run, images that do not fit the network, by themselves or as an epoch's augmentation."""
    for shape in set(shapes):
        try:
            forward_flops(classifier.net, torch.zeros(1, *shape))
        except RuntimeError as error:
            size, model = "x".join(map(str, shape)), f"model={config['model']['name']}"
            if shape == own_shape:
                raise UserError(f"{model} cannot take images of {size}: {one_line(error)}") from error
            raise UserError(
                f"augment: {model} cannot take the images of {size} that it makes in some epoch: {one_line(error)}"
            ) from error


def _set_from_data(classifier: ImageClassifier, data: CIFAR10DataModule) -> None:
    if hasattr(classifier.net, "init_from_data"):
        images = data.arrays("train").images[data.index["train"][:NUM_INIT_IMAGES]]
        images = images.to(classifier.device)  # where compiling has taken it
        classifier.net.init_from_data(classifier.normalized(images))  # type: ignore[operator]


def _checkpoint_to_resume(folder: Path, resume: str | None) -> dict[str, Any] | None:
    """The checkpoint that a run goes on from; None for a run that starts.

    Raises:
        UserError: If the folder holds a run that is not to be resumed, or none where one is, or a damaged checkpoint.
    """
    if resume is None:
        refuse_used(folder)
        return None
    if (folder / LAST).exists():
        checkpoint = read_state(folder / LAST)
        log.info("resume    %s, after step %d", relative(folder), checkpoint["global_step"])
        return checkpoint
    if resume != "auto":
        raise UserError(
            f"resume={folder}: there is no {folder / LAST} to go on from; start over there with resume=auto "
            f"{argument('output_dir', folder)}"
        )
    log.info("resume    nothing in %s to go on from: starting", folder)
    return None


def _finished(folder: Path, checkpoint: dict[str, Any], config: dict[str, Any]) -> dict[str, Any] | None:
    """The metrics of a run that has nothing left to do, after saying so; None for one that has."""
    metrics = finished_metrics(folder)
    if metrics is None or metrics.get("steps") != checkpoint["global_step"]:
        return None
    if (config["trainer"]["max_epochs"] or 0) > (checkpoint["config"]["trainer"]["max_epochs"] or 0):
        return None
    if config["tta"] != checkpoint["config"].get("tta"):
        ckpt = argument("ckpt", folder / LAST)
        raise UserError(
            f"tta={config['tta']}: the run is finished; python evaluate.py {ckpt} tta={config['tta']} judges it"
        )
    done = f"{metrics.get('epochs')} epochs, {metrics['steps']} steps"
    log.info("resume    already finished: %s; a larger trainer.max_epochs trains on", done)
    return metrics


def _fit_and_test(
    trainer: L.Trainer,
    classifier: ImageClassifier,
    data: CIFAR10DataModule,
    *,
    has_val: bool,
    tta: int,
    ckpt_path: Path | None,
) -> None:
    try:
        with refusals():
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
    if has_val and not is_judged:  # training ended between validations, or before a kill
        trainer.validate(classifier, data, verbose=False)
    classifier.tta = tta  # not before: the validations of each epoch would take six times as long
    trainer.test(classifier, data, verbose=False)


def resolved(cfg: DictConfig) -> dict[str, Any]:
    """The plain config, with ``trainer.precision=auto`` replaced by what it stands for on this machine.

    Raises:
        UserError: If a key that training and evaluation share is out of its range.
    """
    config = plain(cfg)
    _check_ranges(config)
    if config["trainer"]["precision"] == "auto":
        config["trainer"]["precision"] = fast_precision(config["trainer"]["accelerator"])
    return config


def _check_ranges(config: dict[str, Any]) -> None:
    if config["num_threads"] is not None and not 1 <= config["num_threads"] <= MAX_THREADS:
        raise UserError(
            f"num_threads must be in [1, {MAX_THREADS}], or null for a sensible number, got {config['num_threads']}"
        )
    if config["tta"] not in (0, 1, 2):
        raise UserError(f"tta must be 0 (none), 1 (mirror images) or 2 (six views), got {config['tta']}")
    if not isinstance(config["compile"], bool) and config["compile"] not in MODES:
        raise UserError(f"compile must be true, false or one of {', '.join(MODES)}, got {config['compile']}")


def _build_trainer(config: dict[str, Any], curves: TrainingCurves) -> L.Trainer:
    callbacks: list[Callback] = [curves]
    if config["trainer"]["enable_progress_bar"] is not False:
        callbacks.append(EpochProgress(curves))
    for name, node in (config["callbacks"] or {}).items():
        if node is not None:
            callbacks.append(build(node, f"callbacks.{name}"))
    every_minutes: Any = config["checkpoint"]["every_minutes"] if isinstance(config["checkpoint"], dict) else None
    if not fits(every_minutes, float):
        raise UserError(f"checkpoint.every_minutes must be a finite number, got {every_minutes!r}")
    with blame("checkpoint", config["checkpoint"]):
        callbacks.append(RunCheckpoints(Path(config["output_dir"]) / "checkpoints", every_minutes=every_minutes))
    loggers = [build(node, f"logger.{name}") for name, node in (config["logger"] or {}).items() if node is not None]
    return build_trainer(config, callbacks=callbacks, logger=loggers)


def _build_data(config: dict[str, Any]) -> CIFAR10DataModule:
    augment = config["augment"]
    if augment and augment.get("mean") == AUTO:  # to refuse a bad value of another key before the data are read
        augment = augment | {"mean": [0.5]}
    return build(config["data"], "data", augment=build(augment, "augment") if augment else None, seed=config["seed"])


def _measure(config: dict[str, Any], data: CIFAR10DataModule) -> None:
    """Put the training images' own mean and standard deviation where ``normalize`` says auto."""
    if AUTO not in config["normalize"].values():
        return
    mean, std = channel_statistics(data.arrays("train").images[data.index["train"]])
    _take_measured(config, {"normalize": {"mean": mean, "std": std}})
    if config["augment"]:
        data.augment = build(config["augment"], "augment")


def _take_measured(config: dict[str, Any], measured: dict[str, Any]) -> None:
    """Put figures that have been measured into a config, wherever it says auto for them."""
    for node in (config["normalize"], config["augment"] or {}):
        for name, value in measured["normalize"].items():
            if node.get(name) == AUTO:
                node[name] = value


def read_data(data: CIFAR10DataModule, config: dict[str, Any]) -> None:
    """Read the data, downloading them where they are absent.

    Raises:
        UserError: If they cannot be had, or the config does not fit them.
    """
    with blame("data", config["data"]):
        data.prepare_data()
        data.setup()


def _build_classifier(
    config: dict[str, Any], data: CIFAR10DataModule, *, pretrained: bool, **hyper_parameters: Any
) -> ImageClassifier:
    images = data.arrays("train").images
    with blame("model", config["model"]):
        # What the data decide goes into the config, so that a checkpoint is complete.
        config["model"] |= {"num_classes": len(data.classes), "in_channels": images.shape[1]}
        net = models.build(**config["model"])
        if pretrained and hasattr(net, "load_pretrained"):
            net.load_pretrained()  # type: ignore[operator]
    if not 0 <= config["label_smoothing"] <= 1:
        raise UserError(f"label_smoothing must be in [0, 1], got {config['label_smoothing']}")
    for name, value in config["normalize"].items():
        if not fits(value, list[float]):
            raise UserError(f"normalize.{name} must be a list of numbers or auto, got {value!r}")
    with blame("normalize", config["normalize"]):
        if len(config["normalize"]["mean"]) not in (1, images.shape[1]):
            raise ValueError(f"mean must have 1 or {images.shape[1]} numbers, got {config['normalize']['mean']}")
        return ImageClassifier(
            net,
            mean=config["normalize"]["mean"],
            std=config["normalize"]["std"],
            freeze=dict(config["freeze"]),
            label_smoothing=config["label_smoothing"],
            **hyper_parameters,
        )
