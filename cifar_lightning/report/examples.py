"""Images worth a look: the most confident mistakes, the least confident hits, and labels that may be wrong."""

from typing import Any

from jaxtyping import Int64
from torch import Tensor

from cifar_lightning.report import html
from cifar_lightning.report.evaluation import Evaluated, Gather

NUM_PICTURES, NUM_HITS = 24, 16
"""Most pictures of mistakes and of suspected labels, and of hits."""

SURE_FROM = 0.8
"""Confidence from which a hit is no near miss, and is not shown."""


def mistakes(result: Evaluated, gather: Gather) -> list[dict[str, Any]]:
    """The mistakes with the highest confidence."""
    confidence = result.shown.confidence.masked_fill(result.is_correct, -1)
    chosen = confidence.argsort(descending=True, stable=True)[: min(NUM_PICTURES, int((~result.is_correct).sum()))]
    return _pictures(result, gather, chosen)


def hits(result: Evaluated, gather: Gather) -> list[dict[str, Any]]:
    """The hits with the lowest confidence, of those below ``SURE_FROM``."""
    confidence = result.shown.confidence.masked_fill(~result.is_correct, 2)
    num = min(NUM_HITS, int((confidence < SURE_FROM).sum()))
    return _pictures(result, gather, confidence.argsort(stable=True)[:num])


def suspects(result: Evaluated, gather: Gather) -> list[dict[str, Any]]:
    """The images whose labels are most suspicious."""
    errors = result.label_errors
    pictures = _pictures(result, gather, errors.index[:NUM_PICTURES])
    for picture, suggested in zip(pictures, errors.suggested.tolist(), strict=False):
        picture["suggested"] = result.classes[suggested]
    return pictures


def _pictures(result: Evaluated, gather: Gather, chosen: Int64[Tensor, " m"]) -> list[dict[str, Any]]:
    targets, preds = result.targets[chosen], result.plain.preds[chosen]
    of_target = result.shown.logits[chosen].softmax(1).gather(1, targets[:, None]).squeeze(1)
    return [
        {
            "source": html.picture(image),
            "target": result.classes[target],
            "pred": result.classes[pred],
            "confidence": confidence,
            "of_target": prob,
            "file": f"image {number:,}" if result.files is None else result.files[number],
        }
        for number, image, target, pred, confidence, prob in zip(
            chosen.tolist(),
            gather(chosen) if len(chosen) else (),
            targets.tolist(),
            preds.tolist(),
            result.shown.confidence[chosen].tolist(),
            of_target.tolist(),
            strict=True,
        )
    ]
