"""``evaluate(cfg)``: the function behind evaluate.py. A checkpoint is all it needs."""

import logging
import math
from collections.abc import Callable
from pathlib import Path
from typing import Any

import lightning as L
from omegaconf import DictConfig

from cifar_lightning import ranks
from cifar_lightning.checkpoint.exported import ExportedClassifier
from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config.build import build
from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.config.resolve import EvaluateSettings, as_plain, frozen, resolve_evaluation
from cifar_lightning.data import ImageDataModule, spread
from cifar_lightning.device import (
    SMALL_BATCH_FLOPS,
    device_name,
    keeping_freed_memory,
    restored_backends,
    sensible_threads,
    threads,
)
from cifar_lightning.engine.assembly import flops_of, read_data
from cifar_lightning.engine.compile import compile_in_place, refuse_without_compiler
from cifar_lightning.engine.launch import joined, launch, ranks_to_start
from cifar_lightning.engine.trainer import build_trainer, check_limit, refusals
from cifar_lightning.errors import RunError, UserError, listed
from cifar_lightning.metrics import Evaluation
from cifar_lightning.report.console import on_screen
from cifar_lightning.report.figures import confusion_matrix, only_for_show, prediction_grid, to_png
from cifar_lightning.report.predictions import write_predictions
from cifar_lightning.report.tables import class_rows, log_table, relative, shown, with_note
from cifar_lightning.runs.evaluations import changed, deciding, evaluation_folder, record_settings
from cifar_lightning.runs.folder import held_by_first, refuse_used
from cifar_lightning.runs.metrics_file import provenance, write_metrics
from cifar_lightning.runs.resume import flattened

log = logging.getLogger(__name__)

NUM_SAMPLES = 32
"""Images in the picture of sample predictions."""


def evaluate(cfg: DictConfig, invocation: Invocation = FROM_PYTHON) -> dict[str, Any]:
    """Evaluate a checkpoint, or a file exported from one, on a split and return what metrics.json holds.

    Writes metrics.json and predictions.csv into ``output_dir``, shows a table, and draws pictures. The latter are only
    for show: one that fails is a warning.

    Args:
        cfg: As ``config.schema.compose(..., config_name="evaluate")`` or the command line makes it; it is not changed.
        invocation: How the command was called.

    Raises:
        UserError: If the checkpoint, the split or the data cannot be used.
        RunError: If the network's outputs are not finite, or a file cannot be written.
    """
    with joined():
        settings = resolve_evaluation(cfg)
        if (num := ranks_to_start(settings.trainer)) > 1:
            return launch(_evaluate_as_rank, as_plain(settings), invocation.plain(), num=num)
        with on_screen(), restored_backends():
            return _evaluate(settings, invocation)


def _evaluate_as_rank(settings: dict[str, Any], invocation: dict[str, Any]) -> dict[str, Any]:
    """``_evaluate`` in a process that has been started for it, which gets plain values."""
    with on_screen():
        return _evaluate(EvaluateSettings(**frozen(settings)), Invocation.of_plain(invocation))


def _evaluate(settings: EvaluateSettings, invocation: Invocation) -> dict[str, Any]:
    """Evaluate in this process, be it one of several ranks."""
    classifier, checkpoint = load_classifier(settings.ckpt)
    if isinstance(classifier, ExportedClassifier) and ranks.world_size() > 1:
        raise UserError(f"trainer.devices must be 1 for an exported file, got {ranks.world_size()}")
    trained, plain, split = checkpoint["settings"], as_plain(settings), settings.split
    folder = Path(
        settings.output_dir
        or ranks.from_first(lambda: evaluation_folder(settings.ckpt, split, changed(flattened(plain), trained)))
    )
    refuse_used(folder)
    trainer = build_trainer(settings.trainer, output_dir=str(folder), logger=False, callbacks=[])
    if isinstance(classifier, ExportedClassifier):
        device_type = trainer.strategy.root_device.type
        classifier.check_use(precision=trainer.precision, compile=settings.compile, device_type=device_type)
    data: ImageDataModule = build(settings.data, "data")
    read_data(data, settings.data, stage="validate" if split == "val" else "test")
    fingerprint = _check(settings, data, classifier, trained)
    check_limit(trainer, split, len(data.eval_batches(split)))
    images = {f"images.{name}": value for name, value in fingerprint.items()}
    recorded = {"ckpt": str(Path(settings.ckpt).absolute()), "split": split, **deciding(plain), **images}
    with held_by_first(folder):
        ranks.from_first(lambda: record_settings(folder, recorded))
        with threads(settings.num_threads or _threads_of_rank()), keeping_freed_memory(trainer.strategy.root_device):
            device = device_name(trainer.strategy.root_device)
            _announce(settings, data, trained, is_its_own=_is_data_of(trained, fingerprint, split))
            log.info("device    %s, precision %s", device, trainer.precision)
            _run(settings, trainer, classifier, data)
        if not ranks.is_first():
            return _figures(classifier, data, split)
        metrics = {
            **_figures(classifier, data, split),
            "ckpt": settings.ckpt,
            "name": trained["name"],
            "seed": trained["seed"],
            "data": data.name,
            "data_note": data.note,
            "fingerprint": fingerprint,
            "device": device,
            "num_devices": ranks.world_size(),
            "precision": str(trainer.precision),
            **provenance(invocation),
        }
        _report(folder, metrics, classifier, data, split)
    return metrics


def _threads_of_rank() -> int | None:
    """CPU threads for one of several ranks; None, which changes nothing, in a process by itself."""
    return sensible_threads(SMALL_BATCH_FLOPS, ranks.local_world_size()) if ranks.world_size() > 1 else None


def _run(settings: EvaluateSettings, trainer: L.Trainer, classifier: ImageClassifier, data: ImageDataModule) -> None:
    compile_in_place(classifier.net, settings.compile)
    classifier.tta = settings.tta
    run = trainer.validate if settings.split == "val" else trainer.test
    with refusals(), refuse_without_compiler(settings.compile):
        run(classifier, data, verbose=False)
    if not math.isfinite(classifier.evaluations[settings.split].loss):  # its predictions would all be the first class
        raise RunError(
            f"ckpt={settings.ckpt}: the network's outputs are not finite in precision {trainer.precision}; try "
            "trainer.precision=32-true"
        )


def _report(
    folder: Path, metrics: dict[str, Any], classifier: ImageClassifier, data: ImageDataModule, split: str
) -> None:
    """Write the predictions, then the numbers, which say that all is there; show them, then draw."""
    evaluation, predictions = classifier.evaluations[split], folder / "predictions.csv"
    num, files = evaluation.num_images, data.files(split)
    write_predictions(
        predictions,
        evaluation,
        data.targets(split)[:num],
        data.classes,
        augmented=classifier.augmented.get(split),
        files=files and files[:num],
    )
    numbers = write_metrics(folder, metrics)
    rows = [(name, shown(name, value)) for name, value in classifier.scalars(split).items()]
    title = f"{metrics['name']} on {with_note(data.name, data.note)}: {evaluation.num_images:,} {split} images"
    log_table(title, [*rows, *class_rows(metrics[f"{split}/class_acc"])])
    for path in (numbers, predictions):
        log.info("wrote     %s", relative(path))
    _draw(folder, evaluation, data, split)


def _announce(settings: EvaluateSettings, data: ImageDataModule, trained: dict[str, Any], *, is_its_own: bool) -> None:
    """Say what is evaluated, and on what."""
    num_images = len(data.index[settings.split])
    log.info("model     %s, seed %s, from %s", trained["model"]["name"], trained["seed"], settings.ckpt)
    log.info("data      %s: %s %s images", with_note(data.name, data.note), f"{num_images:,}", settings.split)
    if not is_its_own:
        log.info("note      these are not the %s images that the run was started with", settings.split)


def _check(
    settings: EvaluateSettings, data: ImageDataModule, classifier: ImageClassifier, trained: dict[str, Any]
) -> dict[str, str]:
    """Refuse data that do not fit the checkpoint, or that have no images of the split; return their fingerprint.

    Validation images that are chosen anew could be images that the network was trained on.
    """
    if not len(data.index[settings.split]):
        raise UserError(
            "split=val: the run has no validation images; train with data.val_size, or with a val folder in "
            "data=folder, or use split=test"
        )
    if set(data.classes) <= set(trained["classes"]):
        data.take_classes(trained["classes"])
    else:
        raise UserError(
            f"data: the checkpoint has the classes {listed(trained['classes'])}, the data have {listed(data.classes)}"
        )
    fingerprint = data.fingerprint()
    if settings.split == "val" and not _is_data_of(trained, fingerprint, "val"):
        raise UserError(
            "split=val: these are not the training images, or not the choice of validation images, that the run was "
            "started with, so it may have been trained on some of them; bring data.root, data.val_size and "
            "data.split_seed back to what they were, or use split=test"
        )
    if isinstance(classifier, ExportedClassifier):
        classifier.check_images(data.image_shape)
        return fingerprint
    refusal = f"the checkpoint's model={trained['model']['name']} cannot take images of {{size}}"
    flops_of(classifier.net, data.image_shape, refusal=refusal)
    return fingerprint


def _is_data_of(trained: dict[str, Any], fingerprint: dict[str, str], split: str) -> bool:
    """Whether a split's images are those of the run, and chosen for validation alike."""
    names = ("train", "val") if split == "val" else ("test",)
    return all(trained["fingerprint"].get(name) == fingerprint[name] for name in names)


def _figures(classifier: ImageClassifier, data: ImageDataModule, split: str) -> dict[str, Any]:
    evaluation = classifier.evaluations[split]
    return {
        **classifier.scalars(split),
        f"num_{split}_images": evaluation.num_images,
        f"{split}/class_acc": dict(zip(data.classes, evaluation.class_acc, strict=True)),
    }


def _draw(folder: Path, evaluation: Evaluation, data: ImageDataModule, split: str) -> None:
    chosen = spread(evaluation.num_images, NUM_SAMPLES)
    pictures: dict[str, Callable[[], Any]] = {
        "confusion.png": lambda: confusion_matrix(evaluation.confusion, data.classes),
        "samples.png": lambda: prediction_grid(
            data.arrays(split).gather(data.index[split][chosen]),
            data.targets(split)[chosen],
            evaluation.preds[chosen],
            data.classes,
            confidence=evaluation.confidence[chosen],
        ),
    }
    for name, draw in pictures.items():
        with only_for_show(name):
            write_durably(folder / name, to_png(draw()))
            log.info("wrote     %s", relative(folder / name))
