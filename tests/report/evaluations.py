"""Evaluations of images of noise, with what metrics.json says beside their figures."""

from collections.abc import Sequence
from typing import Any

import torch

from cifar_lightning.metrics import evaluate
from cifar_lightning.report.evaluation import Evaluated, details, figures
from cifar_lightning.report.evaluation_page import evaluation_page

CURVES = {"train/loss": [(5, 2.0), (10, 1.5)], "train/acc": [(5, 0.2), (10, 0.4)], "val/acc": [(10, 0.5)]}


def make_result(
    classes: Sequence[str],
    num_images: int = 200,
    *,
    skill: float = 3.0,
    tta: bool = False,
    temperature: float | None = None,
    files: Sequence[str] | None = None,
    split: str = "test",
) -> Evaluated:
    """The evaluation of a classifier that is right more often than not; every tenth label is wrong."""
    generator = torch.Generator().manual_seed(0)
    truth = torch.randint(len(classes), (num_images,), generator=generator)
    logits = torch.randn(num_images, len(classes), generator=generator) + skill * torch.eye(len(classes))[truth]
    targets = torch.where(torch.arange(num_images) % 10 == 0, (truth + 1) % len(classes), truth)
    augmented = logits + 0.3 * torch.randn(logits.shape, generator=generator)
    return Evaluated(
        split=split,
        classes=list(classes),
        targets=targets,
        files=files,
        plain=evaluate(logits, targets),
        augmented=evaluate(augmented, targets) if tta else None,
        temperature=temperature,
    )


def make_metrics(result: Evaluated, **more: Any) -> dict[str, Any]:
    """What metrics.json holds."""
    num_images = result.plain.num_images
    return {
        **figures(result),
        f"num_{result.split}_images": num_images,
        "num_images_of_split": num_images,
        "ckpt": "logs/run/checkpoints/last.ckpt",
        "name": "a run",
        "seed": 3,
        "data": "noise",
        "data_note": "drawn at random",
        "is_own_data": True,
        "fingerprint": {"test": "0123abc"},
        "device": "a CPU (1 thread)",
        "precision": "32-true",
        "seconds": 1.25,
        "overrides": ["ckpt=logs/run/checkpoints/last.ckpt"],
        "versions": {"torch": "2.10"},
        "commit": "abcdef",
        "dirty": False,
        **details(result),
        **more,
    }


def make_page(
    result: Evaluated,
    metrics: dict[str, Any] | None = None,
    *,
    shape: tuple[int, ...] = (3, 8, 8),
    recipe: Any = None,
    curves: Any = None,
) -> str:
    """The page of an evaluation of images of noise."""
    images = torch.randint(256, (20, *shape), dtype=torch.uint8, generator=torch.Generator().manual_seed(1))
    return evaluation_page(
        result,
        metrics or make_metrics(result),
        lambda chosen: images[chosen % 20],
        recipe=recipe or {"optimizer": {"lr": 0.1}, "classes": ["not shown"]},
        curves=CURVES if curves is None else curves,
    )
