"""``evaluate(cfg)``: the function behind evaluate.py. A checkpoint is all it needs."""

import logging
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from cifar_lightning.checkpoint.format import load_classifier
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.config.build import build
from cifar_lightning.config.resolve import resolved
from cifar_lightning.data import ImageDataModule, spread
from cifar_lightning.device import device_name, forward_flops, threads
from cifar_lightning.engine.assembly import read_data
from cifar_lightning.engine.compile import compile_in_place, refuse_without_compiler
from cifar_lightning.engine.trainer import build_trainer
from cifar_lightning.errors import UserError, one_line
from cifar_lightning.metrics import Evaluation
from cifar_lightning.report.figures import confusion_matrix, prediction_grid, save
from cifar_lightning.report.tables import log_table, relative, shown, write_predictions
from cifar_lightning.runs.folder import refuse_used
from cifar_lightning.runs.records import provenance, write_metrics

log = logging.getLogger(__name__)

NUM_SAMPLES = 32
"""Images in the picture of sample predictions."""


def evaluate(cfg: DictConfig) -> dict[str, Any]:
    """Judge a checkpoint on a split; write metrics.json, predictions.csv and pictures; return what metrics.json holds.

    Raises:
        UserError: If the checkpoint, the split or the data cannot be used.
    """
    config = resolved(cfg)
    refuse_used(Path(config["output_dir"]))
    classifier, checkpoint = load_classifier(config["ckpt"])
    trainer = build_trainer(config, logger=False, callbacks=[])
    data = build(config["data"], "data")
    read_data(data, config)
    split = config["split"]
    _check(config, data, classifier, checkpoint)
    trained_on = checkpoint["config"]
    note = f" ({data.note})" if data.note else ""
    compile_in_place(classifier.net, config["compile"])
    classifier.tta = config["tta"]
    log.info("model     %s, seed %s, from %s", trained_on["model"]["name"], trained_on["seed"], config["ckpt"])
    log.info("data      %s%s: %s %s images", data.name, note, f"{len(data.index[split]):,}", split)

    judge = trainer.validate if split == "val" else trainer.test
    with threads(config["num_threads"]):
        device = device_name(trainer.strategy.root_device)
        log.info("device    %s, precision %s", device, trainer.precision)
        with refuse_without_compiler(config["compile"]):
            judge(classifier, data, verbose=False)

    evaluation = classifier.evaluations[split]
    output_dir = Path(config["output_dir"])
    metrics = {
        **classifier.scalars(split),
        f"num_{split}_images": evaluation.num_images,
        f"{split}/class_acc": dict(zip(data.classes, evaluation.class_acc, strict=True)),
        "ckpt": config["ckpt"],
        "name": trained_on["name"],
        "seed": trained_on["seed"],
        "data": data.name,
        "data_note": data.note,
        "device": device,
        "precision": str(trainer.precision),
        **provenance(),
    }
    rows = {name: shown(name, value) for name, value in classifier.scalars(split).items()}
    rows |= {name: shown("acc", acc) for name, acc in zip(data.classes, evaluation.class_acc, strict=True)}
    log_table(f"{trained_on['name']} on {data.name}{note}: {evaluation.num_images:,} {split} images", rows)
    for path in (write_metrics(output_dir, metrics), *_write_details(output_dir, evaluation, data, split)):
        log.info("wrote     %s", relative(path))
    return metrics


def _check(
    config: dict[str, Any], data: ImageDataModule, classifier: ImageClassifier, checkpoint: dict[str, Any]
) -> None:
    if config["split"] not in ("val", "test"):
        raise UserError(f"split must be val or test, got {config['split']}")
    if not len(data.index[config["split"]]):
        raise UserError(
            "split=val: there are no validation images; set data.val_size, have a val folder in data=folder, or use "
            "split=test"
        )
    if list(data.classes) != checkpoint["classes"]:
        raise UserError(f"the checkpoint tells apart {checkpoint['classes']}, the data hold {list(data.classes)}")
    image = data.arrays("test").images[:1]
    try:
        forward_flops(classifier.net, classifier.normalized(image))
    except RuntimeError as error:
        model, size = checkpoint["config"]["model"]["name"], "x".join(map(str, image.shape[1:]))
        raise UserError(f"the checkpoint's model={model} cannot take images of {size}: {one_line(error)}") from error


def _write_details(folder: Path, evaluation: Evaluation, data: ImageDataModule, split: str) -> list[Path]:
    targets = data.targets(split)[: evaluation.num_images]
    predictions = folder / "predictions.csv"
    write_predictions(predictions, evaluation, targets, data.classes)
    chosen = spread(evaluation.num_images, NUM_SAMPLES)
    samples = prediction_grid(
        data.arrays(split).images[data.index[split][chosen]],
        targets[chosen],
        evaluation.preds[chosen],
        data.classes,
        confidence=evaluation.confidence[chosen],
    )
    pictures = {"confusion.png": confusion_matrix(evaluation.confusion, data.classes), "samples.png": samples}
    for name, figure in pictures.items():
        save(figure, folder / name)
    return [predictions, *(folder / name for name in pictures)]
