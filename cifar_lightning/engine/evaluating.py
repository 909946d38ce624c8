"""A checkpoint is evaluated on a split of some data: what evaluate.py and compare.py do alike."""

import math
from pathlib import Path
from typing import Any

import lightning as L

from cifar_lightning.checkpoint.exported import ExportedClassifier
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config.build import build
from cifar_lightning.config.resolve import EvaluateSettings
from cifar_lightning.data import ImageDataModule
from cifar_lightning.engine.assembly import flops_of, read_data
from cifar_lightning.engine.compile import compile_in_place, refuse_without_compiler
from cifar_lightning.engine.trainer import build_trainer, refusals
from cifar_lightning.errors import RunError, UserError, listed


def evaluating_trainer(settings: EvaluateSettings, folder: Path, classifier: ImageClassifier) -> L.Trainer:
    """The Trainer that evaluates a classifier.

    Raises:
        UserError: If there is none as configured, or it is none for an exported file.
    """
    trainer = build_trainer(settings.trainer, output_dir=str(folder), logger=False, callbacks=[])
    if isinstance(classifier, ExportedClassifier):
        device_type = trainer.strategy.root_device.type
        classifier.check_use(precision=trainer.precision, compile=settings.compile, device_type=device_type)
    return trainer


def evaluated_data(settings: EvaluateSettings) -> ImageDataModule:
    """The data, with the images of the split.

    Raises:
        UserError: If they cannot be had.
    """
    data: ImageDataModule = build(settings.data, "data")
    read_data(data, settings.data, stage="validate" if settings.split == "val" else "test")
    return data


def check_data(
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
    if settings.split == "val" and not is_data_of(trained, fingerprint, "val"):
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


def is_data_of(trained: dict[str, Any], fingerprint: dict[str, str], split: str) -> bool:
    """Whether a split's images are those of the run, and chosen for validation alike."""
    names = ("train", "val") if split == "val" else ("test",)
    return all(trained["fingerprint"].get(name) == fingerprint[name] for name in names)


def run_evaluation(
    settings: EvaluateSettings, trainer: L.Trainer, classifier: ImageClassifier, data: ImageDataModule
) -> None:
    """Evaluate a classifier, which then has the evaluation.

    Raises:
        RunError: If its outputs are not finite.
    """
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
