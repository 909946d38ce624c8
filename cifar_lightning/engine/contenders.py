"""Checkpoints on the same images: each is evaluated in turn, then they are compared."""

import dataclasses
import logging
import os
import shlex
from collections.abc import Sequence
from functools import partial
from pathlib import Path
from typing import Any

from jaxtyping import Int64, UInt8
from torch import Tensor

from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.checkpoint.write import write_durably
from cifar_lightning.config.invocation import Invocation
from cifar_lightning.config.resolve import EvaluateSettings, frozen
from cifar_lightning.data import ImageDataModule
from cifar_lightning.device import device_name, keeping_freed_memory, restored_backends, threads
from cifar_lightning.engine.evaluating import check_data, evaluated_data, evaluating_trainer, is_data_of, run_evaluation
from cifar_lightning.engine.trainer import check_limit
from cifar_lightning.errors import UserError, counted, listed, printable
from cifar_lightning.report.disagreement import (
    Contender,
    Disagreement,
    checkpoint_rows,
    disagreement,
    disagreements_csv,
    duel_rows,
    verdict,
)
from cifar_lightning.report.evaluation import Evaluated, evaluated
from cifar_lightning.report.figures import only_for_show
from cifar_lightning.report.tables import log_table, relative, with_note

log = logging.getLogger(__name__)


def compare_checkpoints(settings: Sequence[EvaluateSettings], folder: Path, invocation: Invocation) -> Disagreement:
    """Evaluate checkpoints, say how they differ, and write that into a folder.

    Args:
        settings: Of the evaluation of each; they differ in ``ckpt`` alone. The data are those of the first.
        folder: Held by this process.
        invocation: How the command was called.

    Raises:
        UserError: If one cannot be used, or classifies other classes than the first.
        RunError: If outputs are not finite, or a file cannot be written.
    """
    _refuse_doubles([one.ckpt for one in settings])
    loaded = [load_classifier(one.ckpt) for one in settings]  # all of them, before the first takes its time
    classes = loaded[0][1]["settings"]["classes"]
    for one, (_, checkpoint) in zip(settings, loaded, strict=True):
        if (own := checkpoint["settings"]["classes"]) != classes:
            raise UserError(f"ckpt={one.ckpt} has the classes {listed(own)}, {settings[0].ckpt} has {listed(classes)}")
    data = evaluated_data(settings[0])
    results = []
    with restored_backends():
        for one, (classifier, checkpoint) in zip(settings, loaded, strict=True):
            results.append(_evaluated(one, classifier, checkpoint["settings"], data, folder))
    names = _names([one.ckpt for one in settings])
    shown = [result.shown_augmented or result.shown for result in results]
    contenders = [
        Contender(name, one.ckpt, evaluation.preds, evaluation.confidence)
        for name, one, evaluation in zip(names, settings, shown, strict=True)
    ]
    found = disagreement(contenders, results[0].targets)
    _report(found, settings[0], data, results[0], folder, invocation)
    return found


def _refuse_doubles(paths: Sequence[str]) -> None:
    seen: dict[str, str] = {}
    for path in paths:
        if (real := os.path.realpath(path)) in seen:
            raise UserError(f"ckpt={path} is the same file as {seen[real]}: give each checkpoint once")
        seen[real] = path


def _names(paths: Sequence[str]) -> list[str]:
    """The paths without the folders that all begin with, and without what all end with, such as the file's name."""
    parts = [list(Path(path).parts) for path in paths]
    for end in (0, -1):
        while all(len(one) > 1 for one in parts) and len({one[end] for one in parts}) == 1:
            for one in parts:
                one.pop(end)
    return [str(Path(*one)) for one in parts]


def _evaluated(
    settings: EvaluateSettings, classifier: Any, trained: dict[str, Any], data: ImageDataModule, folder: Path
) -> Evaluated:
    """One checkpoint, evaluated in its own precision unless another is asked for."""
    precision = settings.trainer["precision"] or trained["trainer"].get("precision")
    settings = dataclasses.replace(settings, trainer=frozen({**settings.trainer, "precision": precision}))
    try:
        trainer = evaluating_trainer(settings, folder, classifier)
        fingerprint = check_data(settings, data, classifier, trained)
        check_limit(trainer, settings.split, len(data.eval_batches(settings.split)))
    except UserError as error:
        raise UserError(f"ckpt={settings.ckpt}: {error}") from error
    with threads(settings.num_threads), keeping_freed_memory(trainer.strategy.root_device):
        device = device_name(trainer.strategy.root_device)
        log.info("evaluate  %s, on %s, precision %s", settings.ckpt, device, trainer.precision)
        if not is_data_of(trained, fingerprint, settings.split):
            log.info("note      these are not the %s images that its run was started with", settings.split)
        run_evaluation(settings, trainer, classifier, data)
    return evaluated(classifier, data, settings.split)


def _report(
    found: Disagreement,
    settings: EvaluateSettings,
    data: ImageDataModule,
    result: Evaluated,
    folder: Path,
    invocation: Invocation,
) -> None:
    split, num_images = settings.split, len(found.targets)
    tta = f", with test-time augmentation (tta={settings.tta})" if settings.tta else ""
    about = f"{counted(num_images, f'{split} image')} of {with_note(data.name, data.note)}{tta}"
    if split == "val":
        about += "; a checkpoint may have been chosen by these images, which flatters it: the test images decide"
    for title, rows in (
        (about, checkpoint_rows(found, is_short=True)),
        ("differences", duel_rows(found, is_short=True)),
    ):
        log_table(title, rows.rows, columns=rows.columns)
    log.info("result    %s", printable(verdict(found)))
    write_durably(folder / "disagreements.csv", disagreements_csv(found, data.classes, result.files))
    with only_for_show("compare.html"):
        from cifar_lightning.report.disagreement_page import disagreement_page  # with jinja2

        page = disagreement_page(
            found,
            title=f"{len(found.contenders)} checkpoints on the same images",
            about=about,
            classes=data.classes,
            files=result.files,
            gather=partial(_gather, data, split),
            command=shlex.join(["python", "compare.py", *invocation.overrides]),
        )
        write_durably(folder / "compare.html", page.encode("utf-8", "backslashreplace"))
        log.info("page      %s", relative(folder / "compare.html"))
    log.info("images    %s", relative(folder / "disagreements.csv"))


def _gather(data: ImageDataModule, split: str, chosen: Int64[Tensor, " b"]) -> UInt8[Tensor, "b c h w"]:
    return data.arrays(split).gather(data.index[split][chosen])
