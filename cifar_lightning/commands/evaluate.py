"""``evaluate(cfg)``: the function behind evaluate.py. A checkpoint is all it needs."""

import logging
import time
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Int64, UInt8
from omegaconf import DictConfig
from torch import Tensor

from cifar_lightning import ranks
from cifar_lightning.checkpoint.exported import ExportedClassifier
from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.config.build import blame
from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.config.resolve import EvaluateSettings, as_plain, flattened, frozen, resolve_evaluation
from cifar_lightning.data import ImageDataModule
from cifar_lightning.data.other_sets import read_other_sets
from cifar_lightning.device import (
    SMALL_BATCH_FLOPS,
    device_name,
    keeping_freed_memory,
    restored_backends,
    sensible_threads,
    threads,
)
from cifar_lightning.engine.drops import drops
from cifar_lightning.engine.evaluating import check_data, evaluated_data, evaluating_trainer, is_data_of, run_evaluation
from cifar_lightning.engine.launch import joined, launch, ranks_to_start
from cifar_lightning.engine.trainer import check_limit
from cifar_lightning.errors import UserError, counted
from cifar_lightning.report.console import on_screen
from cifar_lightning.report.evaluation import Evaluated, details, evaluated, figure_rows, figures
from cifar_lightning.report.evaluation_files import draw_pictures, draw_report
from cifar_lightning.report.predictions import write_predictions
from cifar_lightning.report.tables import class_rows, log_drops, log_values, relative, with_note
from cifar_lightning.runs.curves import CURVES, read_curves
from cifar_lightning.runs.evaluations import SETS, changed, deciding, evaluation_folder, record_settings
from cifar_lightning.runs.folder import held_by_first, refuse_used, run_of
from cifar_lightning.runs.metrics_file import provenance, write_metrics

log = logging.getLogger(__name__)


def evaluate(cfg: DictConfig, invocation: Invocation = FROM_PYTHON) -> dict[str, Any]:
    """Evaluate a checkpoint, or a file exported from one, on a split and return what metrics.json holds.

    Writes metrics.json and predictions.csv into ``output_dir``, shows a table, and draws pictures and report.html. The
    latter are only for show: one that fails is a warning. Other test sets may take hours: metrics.json is written
    before them, and again with them.

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
    refuse_used(folder, is_for_run=False)
    trainer = evaluating_trainer(settings, folder, classifier)
    data = evaluated_data(settings)
    fingerprint = check_data(settings, data, classifier, trained)
    check_limit(trainer, split, len(data.eval_batches(split)))
    with blame("other_sets"):
        sets = read_other_sets(settings.other_sets, data, split)
    images = {f"images.{name}": value for name, value in fingerprint.items()}
    images |= {f"{SETS}{other.name}": other.fingerprint for other in sets}
    recorded = {"ckpt": str(Path(settings.ckpt).absolute()), "split": split, **deciding(plain), **images}
    with held_by_first(folder):
        ranks.from_first(lambda: record_settings(folder, recorded))
        with threads(settings.num_threads or _threads_of_rank()), keeping_freed_memory(trainer.strategy.root_device):
            device = device_name(trainer.strategy.root_device)
            is_own = is_data_of(trained, fingerprint, split)
            _announce(settings, data, trained, is_its_own=is_own)
            log.info("device    %s, precision %s", device, trainer.precision)
            started = time.perf_counter()
            run_evaluation(settings, trainer, classifier, data)
            seconds = time.perf_counter() - started
            if not ranks.is_first():
                return classifier.scalars(split)
            result = evaluated(classifier, data, split)
            metrics = {
                **figures(result),
                f"num_{split}_images": result.plain.num_images,
                "num_images_of_split": len(data.index[split]),
                "ckpt": settings.ckpt,
                "name": trained["name"],
                "seed": trained["seed"],
                "data": data.name,
                "data_note": data.note,
                "is_own_data": is_own,
                "fingerprint": fingerprint,
                "device": device,
                "num_devices": ranks.world_size(),
                "precision": str(trainer.precision),
                "seconds": seconds,
                **provenance(invocation),
                **details(result),
            }
            predictions = _write(folder, metrics, result)
            if other_sets := drops(trainer, classifier, data, split, sets, corruptions=settings.corruptions):
                metrics["other_sets"] = other_sets
                log_drops(other_sets, split)
        for path in (write_metrics(folder, metrics), predictions):
            log.info("wrote     %s", relative(path))
        gather = partial(_gather, data, split)
        draw_pictures(folder, result, gather)
        run = run_of(settings.ckpt)
        draw_report(folder, result, metrics, gather, recipe=trained, curves=read_curves(run, CURVES) if run else {})
    return metrics


def _threads_of_rank() -> int | None:
    """CPU threads for one of several ranks; None, which changes nothing, in a process by itself."""
    return sensible_threads(SMALL_BATCH_FLOPS, ranks.local_world_size()) if ranks.world_size() > 1 else None


def _write(folder: Path, metrics: dict[str, Any], result: Evaluated) -> Path:
    """Write the predictions and then the numbers, and show them; return the path of the predictions."""
    predictions, num = folder / "predictions.csv", result.plain.num_images
    write_predictions(
        predictions,
        result.shown,
        result.targets,
        result.classes,
        augmented=result.shown_augmented,
        errors=result.label_errors,
        files=result.files,
    )
    write_metrics(folder, metrics)
    on = f"{metrics['name']} on {with_note(metrics['data'], metrics['data_note'])}"
    title = f"{on}: {counted(num, f'{result.split} image')}"
    of_classes = [(name, acc, "") for name, acc in class_rows(metrics[f"{result.split}/class_acc"])]
    log_values(title, [*figure_rows(result), *of_classes])
    return predictions


def _announce(settings: EvaluateSettings, data: ImageDataModule, trained: dict[str, Any], *, is_its_own: bool) -> None:
    """Say what is evaluated, and on what."""
    num_images = len(data.index[settings.split])
    log.info("model     %s, seed %s, from %s", trained["model"]["name"], trained["seed"], settings.ckpt)
    log.info("data      %s: %s", with_note(data.name, data.note), counted(num_images, f"{settings.split} image"))
    if not is_its_own:
        log.info("note      these are not the %s images that the run was started with", settings.split)


def _gather(data: ImageDataModule, split: str, chosen: Int64[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
    """Chosen images of a split."""
    return data.arrays(split).gather(data.index[split][chosen])
