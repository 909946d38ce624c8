"""How much accuracy a classifier loses on other test sets and on corrupted images, with intervals."""

import logging
import math
import zlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from typing import Any

import lightning as L
import torch
import torch.nn.functional as F
from jaxtyping import Bool, Float, Float64, Int64, UInt8
from torch import Tensor

from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.corruptions import SEVERITIES, corrupt, kinds
from cifar_lightning.data import Batches, ImageDataModule
from cifar_lightning.data.batches import stream_seed
from cifar_lightning.data.other_sets import COMMON, OtherImages, OtherLabels, OtherSet
from cifar_lightning.errors import printable
from cifar_lightning.metrics import as_float
from cifar_lightning.report import stats

log = logging.getLogger(__name__)

Row = dict[str, Any]
"""What metrics.json has of a set in ``other_sets``:

``name``; ``source``, what it is a part of; ``num_images``; ``acc`` with the ends ``low`` and ``high`` of its 95 %
interval; ``against``, the accuracy that it is compared with; ``drop``, that minus ``acc``, with ``drop_low``,
``drop_high`` and ``p``, which is null where the images are not paired; ``paired``; ``loss``; ``note``; and for several
severities ``severities``, the accuracy on each.
"""

Classify = Callable[[Iterable[UInt8[Tensor, "b c h w"]]], Float[Tensor, "n k"]]
"""Batches of raw images, anywhere -> their logits in float32, on the CPU."""

CORRUPTIONS = "corruptions"
_OWN_NOTE = (
    f"means over {len(SEVERITIES)} severities of this project's own corruptions, which are not CIFAR-10-C: not to be "
    "compared with it"
)

_IMAGES_PER_DRAW = 100
"""Images that are corrupted at a time, with random numbers of their own: so ``data.eval_batch_size`` has no part."""


@dataclass(frozen=True)
class _Results:
    """How a classifier does on versions of N images.

    Attributes:
        right: By version, whether each image is right, as a share of 0 or 1; or the mean of such.
        losses: Mean cross entropy by version, in nats.
    """

    right: Float64[Tensor, "v n"]
    losses: list[float]

    @property
    def scores(self) -> Float64[Tensor, " n"]:
        """By image, the share of its versions that are right."""
        return self.right.mean(0)


@dataclass(frozen=True)
class _Reference:
    """The split's own images: what other sets are held against.

    Attributes:
        right: Whether each image is right.
        targets: Their classes.
        split: Name of the split.
    """

    right: Bool[Tensor, " n"]
    targets: Int64[Tensor, " n"]
    split: str


def drops(
    trainer: L.Trainer,
    classifier: ImageClassifier,
    data: ImageDataModule,
    split: str,
    sets: Sequence[OtherSet],
    *,
    corruptions: bool,
) -> list[Row]:
    """Evaluate a classifier on other sets, with its plain logits: without test-time augmentation.

    Paired are the images of the split with versions or other labels of the same images, by McNemar's exact test of one
    version. Several severities of an image are not independent; so their mean is taken by image first, and the means
    over the images are compared by Student's paired t-test. Where a limit of the Trainer left images of the split out,
    paired sets leave the same ones out.

    Args:
        trainer: The Trainer that has evaluated the split: its device and precision are used.
        classifier: The classifier, with ``evaluations[split]``.
        data: The data of the split.
        split: Its name.
        sets: See ``read_other_sets``.
        corruptions: Whether the split's images are corrupted, too.
    """
    evaluation = classifier.evaluations[split]
    targets = data.targets(split)[: evaluation.num_images]
    reference = _Reference(evaluation.preds == targets, targets, split)
    classify, rows = _classify(trainer, classifier), []
    for source, members in groupby(sets, lambda other: other.source):
        rows += _rows_of_set(source, list(members), classify, data, reference)
    if corruptions:
        rows += _corrupted_rows(classify, data, reference)
    return rows


def _classify(trainer: L.Trainer, classifier: ImageClassifier) -> Classify:
    """The classifier on the Trainer's device and in its precision, which the Trainer ends with its own evaluation."""
    device = trainer.strategy.root_device
    classifier.to(device).eval()

    def logits(batches: Iterable[UInt8[Tensor, "b c h w"]]) -> Float[Tensor, "n k"]:
        found = []
        with torch.inference_mode():
            for images in batches:
                with trainer.precision_plugin.test_step_context():  # around the network alone, as it may set a dtype
                    found.append(as_float(classifier(images.to(device))))
            return torch.cat(found).cpu()

    return logits


def _rows_of_set(
    source: str,
    members: Sequence[OtherSet],
    classify: Classify,
    data: ImageDataModule,
    reference: _Reference,
) -> list[Row]:
    """Rows of a set: the means over its parts with several severities, then each part."""
    rows, found = [], {}
    own_logits = None
    for number, other in enumerate(members, 1):
        if isinstance(other, OtherLabels):
            if own_logits is None:
                own_logits = classify(images for images, _ in data.eval_batches(reference.split))
                own_logits = own_logits[: len(reference.right)]
            results = _relabelled(own_logits, other)
        else:
            results = found[other.name] = _on_images(classify, other, data, reference)
        rows.append(_row(other, results, reference))
        _tell(rows[-1], number, len(members))
    if len(found) < 2 or not all(isinstance(other, OtherImages) and other.num_severities > 1 for other in members):
        return rows
    return [*_means(source, found, members[0], reference), *rows]


def _means(source: str, found: Mapping[str, _Results], like: OtherSet, reference: _Reference) -> list[Row]:
    """Rows of means over kinds of corruptions; over those that papers take, too, where there are more."""
    common = {name: results for name, results in found.items() if name.removeprefix(f"{source} ") in COMMON}
    chosen = [common, found] if len(common) == len(COMMON) < len(found) else [found]
    return [_row(like, _mean(list(each.values())), reference, name=f"{source}, mean of {len(each)}") for each in chosen]


def _mean(results: Sequence[_Results]) -> _Results:
    losses = [sum(by_severity) / len(results) for by_severity in zip(*(each.losses for each in results), strict=True)]
    return _Results(torch.stack([each.right for each in results]).mean(0), losses)


def _on_images(classify: Classify, other: OtherImages, data: ImageDataModule, reference: _Reference) -> _Results:
    num = len(other.arrays.targets) // other.num_severities
    used = len(reference.right) if other.is_paired else num
    right, losses = [], []
    for severity in range(other.num_severities):
        index = torch.arange(severity * num, severity * num + used)
        batches = Batches(other.arrays, index, batch_size=data.eval_batch_size)
        is_right, loss = _judged(classify(images for images, _ in batches), other.arrays.targets[index])
        right.append(is_right)
        losses.append(loss)
    return _Results(torch.stack(right), losses)


def _judged(logits: Float[Tensor, "n k"], targets: Int64[Tensor, " n"]) -> tuple[Float64[Tensor, " n"], float]:
    """Whether each image is right, and the mean cross entropy. Logits that are not finite are wrong."""
    right = (logits.argmax(1) == targets) & logits.isfinite().all(1)
    return right.double(), F.cross_entropy(logits.double(), targets).item()


def _relabelled(logits: Float[Tensor, "n k"], other: OtherLabels) -> _Results:
    right, loss = _judged(logits, other.targets[: len(logits)])
    if other.shares is not None:
        loss = F.cross_entropy(logits.double(), other.shares[: len(logits)]).item()
    return _Results(right[None], [loss])


def _corrupted_rows(classify: Classify, data: ImageDataModule, reference: _Reference) -> list[Row]:
    """Rows of the split's own images, corrupted: the mean over the kinds, then each kind."""
    names, found, rows = kinds(data.image_shape[0]), {}, []
    same = OtherLabels(source=CORRUPTIONS, name="", targets=reference.targets, note=_OWN_NOTE, fingerprint="")
    for number, kind in enumerate(names, 1):
        name = f"{CORRUPTIONS} {kind}"
        judged = [_judged(logits, reference.targets) for logits in _corrupted(classify, data, reference, kind)]
        found[name] = _Results(torch.stack([right for right, _ in judged]), [loss for _, loss in judged])
        rows.append(_row(same, found[name], reference, name=name))
        _tell(rows[-1], number, len(names))
    return [_row(same, _mean(list(found.values())), reference, name=f"{CORRUPTIONS}, mean of {len(found)}"), *rows]


def _corrupted(
    classify: Classify, data: ImageDataModule, reference: _Reference, kind: str
) -> list[Float[Tensor, "n k"]]:
    """Logits of the corrupted images, by severity."""
    index = data.index[reference.split][: len(reference.right)]
    draws_per_batch = -(-data.eval_batch_size // _IMAGES_PER_DRAW)
    logits: list[list[Tensor]] = [[] for _ in SEVERITIES]
    # On the CPU, so that all devices get the same images.
    batches = Batches(data.arrays(reference.split), index, batch_size=draws_per_batch * _IMAGES_PER_DRAW)
    for batch, (images, _) in enumerate(batches):
        draws = list(enumerate(images.split(_IMAGES_PER_DRAW), batch * draws_per_batch))
        for severity, collected in zip(SEVERITIES, logits, strict=True):
            changed = [corrupt(part, kind, severity, _generator(kind, draw)) for draw, part in draws]
            collected.append(classify([torch.cat(changed)]))
    return [torch.cat(collected) for collected in logits]


def _generator(kind: str, draw: int) -> torch.Generator:
    return torch.Generator().manual_seed(stream_seed(zlib.crc32(kind.encode()), draw))


def _tell(row: Row, number: int, num: int) -> None:
    """Say that a part of a set is done, as all parts of some sets take long."""
    if num > 1:
        log.info("part      %s: %.2f %% (%d of %d)", printable(row["name"]), 100 * row["acc"], number, num)


def _row(other: OtherSet, results: _Results, reference: _Reference, *, name: str | None = None) -> Row:
    scores, against, note = results.scores, reference.right, other.note
    is_paired = isinstance(other, OtherLabels) or other.is_paired
    if not is_paired:
        assert isinstance(other, OtherImages)
        is_known = torch.isin(reference.targets, other.arrays.targets.unique())
        if not is_known.all():
            against = against[is_known]
            of_known = f"the drop is against the {len(against):,} {reference.split} images of these classes"
            note = f"{note}; {of_known}" if note else of_known
    low, high = _interval(results)
    drop, drop_low, drop_high, p = _drop(results, against.double(), is_paired=is_paired)
    row = {
        "name": other.name if name is None else name,
        "source": other.source,
        "num_images": len(scores),
        "acc": scores.mean().item(),
        "low": low,
        "high": high,
        "against": against.double().mean().item(),
        "drop": drop,
        "drop_low": drop_low,
        "drop_high": drop_high,
        "p": p,
        "paired": is_paired,
        "loss": sum(results.losses) / len(results.losses),
        "note": note,
    }
    return row | ({"severities": results.right.mean(1).tolist()} if len(results.right) > 1 else {})


def _interval(results: _Results) -> tuple[float, float]:
    """The 95 % interval of the accuracy: Wilson's of one version of each image, Student's of the mean of several."""
    scores = results.scores
    mean = stats.summary(scores.tolist())
    if len(results.right) > 1 and mean.sd > 0:
        return max(0.0, mean.low), min(1.0, mean.high)
    return stats.accuracy_interval(round(scores.sum().item()), len(scores))


def _drop(
    results: _Results, against: Float64[Tensor, " m"], *, is_paired: bool
) -> tuple[float, float, float, float | None]:
    """The accuracy compared with minus that of the results, the ends of its 95 % interval, and p where it is paired.

    Nan stands for what cannot be known: of too few images, or of several severities where all images lose the same.
    """
    scores, is_single = results.scores, len(results.right) == 1
    if len(against) == 0:
        return math.nan, math.nan, math.nan, None
    if is_paired and is_single:
        pairs = stats.paired_accuracies(scores.bool().tolist(), against.bool().tolist())
        return pairs.difference, pairs.low, pairs.high, pairs.p
    if is_paired:
        test = stats.paired_test(scores.tolist(), against.tolist())
        difference = test.difference
        if difference.mean != 0 and not difference.sd > 0:
            return difference.mean, math.nan, math.nan, math.nan
        return difference.mean, difference.low, difference.high, test.p
    if is_single:
        right, other_right = round(scores.sum().item()), round(against.sum().item())
        return *stats.accuracy_difference(right, len(scores), other_right, len(against)), None
    return *stats.mean_difference(scores.tolist(), against.tolist()), None
