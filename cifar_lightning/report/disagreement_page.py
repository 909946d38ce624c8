"""compare.html of checkpoints: their accuracies, their differences, and pictures of what they disagree about."""

from collections.abc import Callable, Sequence
from typing import Any

from jaxtyping import Int64, UInt8
from torch import Tensor

from cifar_lightning.errors import shortened
from cifar_lightning.report import html
from cifar_lightning.report.disagreement import Disagreement, checkpoint_rows, duel_rows, verdict

NUM_PICTURES = 18
"""Most pictures of one kind."""

_MAX_DUELS = 3
"""Most pairs of checkpoints of which there are pictures, the first ones."""


def disagreement_page(
    found: Disagreement,
    *,
    title: str,
    about: str,
    classes: Sequence[str],
    files: Sequence[str] | None,
    gather: Callable[[Int64[Tensor, " b"]], UInt8[Tensor, "b c h w"]],
    command: str,
) -> str:
    """The page.

    Args:
        found: What is shown.
        title: Stands on top.
        about: Which images these are.
        classes: Names of the classes.
        files: Path of each image; None for data that are no files.
        gather: Gives images by their numbers.
        command: What makes the page again.
    """
    kinds = []
    for duel in found.duels[:_MAX_DUELS]:
        for one, other in ((duel.first, duel.second), (duel.second, duel.first)):
            won = found.right(one) & ~found.right(other)
            kinds.append(
                {
                    "right": found.contenders[one].name,
                    "wrong": found.contenders[other].name,
                    "num": int(won.sum()),
                    "pictures": _pictures(found, won, one, other, classes, files, gather),
                }
            )
    return html.page(
        "disagreement.html",
        title=title,
        about=about,
        verdict=verdict(found),
        checkpoints=checkpoint_rows(found),
        duels=duel_rows(found),
        kinds=kinds,
        num_differ=int(found.differ.sum()),
        command=command,
    )


def _pictures(
    found: Disagreement,
    won: Tensor,
    one: int,
    other: int,
    classes: Sequence[str],
    files: Sequence[str] | None,
    gather: Callable[[Any], Any],
) -> list[dict[str, Any]]:
    """Those images that one has right and the other most confidently wrong."""
    right, wrong = found.contenders[one], found.contenders[other]
    chosen = wrong.confidence.masked_fill(~won, -1).argsort(descending=True, stable=True)
    chosen = chosen[: min(NUM_PICTURES, int(won.sum()))]
    images = gather(chosen) if len(chosen) else ()
    return [
        {
            "source": html.picture(image),
            "target": shortened(classes[int(found.targets[number])], 60),
            "pred": shortened(classes[int(wrong.preds[number])], 60),
            "confidence": float(wrong.confidence[number]),
            "of_right": float(right.confidence[number]),
            "file": f"image {number:,}" if files is None else files[number],
        }
        for number, image in zip(chosen.tolist(), images, strict=True)
    ]
