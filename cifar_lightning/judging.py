"""``evaluate(cfg)``: the function behind evaluate.py. A checkpoint is all it needs."""

import logging
from pathlib import Path
from typing import Any

import torch
from omegaconf import DictConfig, OmegaConf

from cifar_lightning.building import read_data, resolved
from cifar_lightning.checkpoint import load_classifier, read
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.compilation import compile_in_place, refuse_without_compiler
from cifar_lightning.config import CONF, UserError, build, one_line, quoted
from cifar_lightning.data import CIFAR10DataModule, spread
from cifar_lightning.devices import device_name, forward_flops, threads
from cifar_lightning.evaluation import Evaluation, write_predictions
from cifar_lightning.figures import confusion_matrix, prediction_grid, save
from cifar_lightning.records import log_table, provenance, relative, shown, write_metrics
from cifar_lightning.runs import refuse_used
from cifar_lightning.trainer import build_trainer

log = logging.getLogger(__name__)

NUM_SAMPLES = 32
"""Images in the picture of sample predictions."""


def overrides_from(path: str) -> list[str]:
    """Command-line overrides that give evaluate.py a checkpoint's data, precision, kernels, threads and views.

    The data group's file in conf/ is looked up by name; the checkpoint's plain values go on top of it. A class is never
    taken from a file: one given on the command line in training is given again.

    Raises:
        UserError: If the checkpoint is refused, or names a data group that is not in conf/data.
    """
    config = read(path)["config"]
    name = config["data"].get("name")
    file = CONF / "data" / f"{name}.yaml"
    if name not in {known.stem for known in file.parent.glob("*.yaml")}:
        raise UserError(f"{path} was trained on data={name}, which is not in {file.parent}; choose with data=")
    known = _keys(file)
    # Nor are addresses to fetch from.
    values = {f"data.{k}": value for k, value in config["data"].items() if k in known and k[0] != "_" and k != "urls"}
    values |= {"trainer.precision": config["trainer"].get("precision"), "compile": config.get("compile", False)}
    values["tta"] = config.get("tta", 0)
    available = torch.get_num_threads()  # more would wait for each other
    values["num_threads"] = min(config.get("num_threads") or available, available)
    if config["trainer"].get("accelerator") == "cpu":  # which every machine has; others are chosen anew
        values["trainer.accelerator"] = "cpu"
    return [f"data={name}", *(f"{key}={quoted(value)}" for key, value in values.items() if not isinstance(value, dict))]


def _keys(file: Path) -> set[str]:
    """Keys of a file of conf/, those of the files beside it that it builds upon among them."""
    node = OmegaConf.to_container(OmegaConf.load(file))
    assert isinstance(node, dict)
    parents = [parent for parent in node.pop("defaults", []) if parent != "_self_"]
    return {*map(str, node), *(key for parent in parents for key in _keys(file.with_name(f"{parent}.yaml")))}


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
    config: dict[str, Any], data: CIFAR10DataModule, classifier: ImageClassifier, checkpoint: dict[str, Any]
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


def _write_details(folder: Path, evaluation: Evaluation, data: CIFAR10DataModule, split: str) -> list[Path]:
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
