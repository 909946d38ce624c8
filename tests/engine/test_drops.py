"""What is lost on other sets: a classifier that reads the class from the brightness, and numbers worked out by hand."""

import math

import numpy as np
import pytest
import torch
from conftest import make_trainer
from known_sets import data_of, write_corrupted, write_new, write_noisy
from scipy import stats
from torch import nn

from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.corruptions import kinds
from cifar_lightning.data.other_sets import COMMON, EXTRA, read_other_sets
from cifar_lightning.engine.drops import drops


class Brightness(nn.Module):
    """Class k for images of brightness 20 k."""

    def __init__(self) -> None:
        super().__init__()
        self.levels = nn.Parameter(torch.arange(10) * 20.0)

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        return -(images.mean((1, 2, 3))[:, None] * 255 - self.levels).abs() / 20


def shown_as(classes: list[int]) -> np.ndarray:
    """Images that the classifier takes for these classes."""
    levels = np.array(classes, dtype=np.uint8) * 20
    return np.broadcast_to(levels[:, None, None, None], (len(classes), 32, 32, 3)).copy()


LABELS = [i % 10 for i in range(20)]
SEEN = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9, 0, 1, 2, 3, 4, 0, 0, 0, 0, 0]  # 15 of 20 are right


@pytest.fixture
def rows(tmp_path):
    """Evaluate the classifier on a split of 20 images, of which it has 15 right; gives the rows."""

    def evaluated(
        *asked: str, corruptions: bool = False, seen=SEEN, split: str = "test", batch_size: int = 6, **limits
    ):
        data = data_of(tmp_path, data=shown_as(seen), num_train=len(seen), num_test=len(seen), val_size=0)
        data.eval_batch_size = batch_size
        if split == "val":
            data.index["val"] = torch.arange(10, len(seen))
        classifier = ImageClassifier(Brightness(), mean=[0.0], std=[1.0])
        trainer = make_trainer(tmp_path, **{"limit_val_batches": 1.0} | limits)
        (trainer.validate if split == "val" else trainer.test)(classifier, data, verbose=False)
        sets = read_other_sets(asked, data, split)
        return drops(trainer, classifier, data, split, sets, corruptions=corruptions)

    return evaluated


def mean_loss(seen: list[int], labels: list[int]) -> float:
    logits = [[-abs(k - level) for k in range(10)] for level in seen]
    return sum(math.log(sum(map(math.exp, row))) - row[label] for row, label in zip(logits, labels, strict=True)) / len(
        labels
    )


def test_new_images_are_not_paired(rows, tmp_path):
    labels = [0, 1, 2, 3, 4, 5, 6, 7, 8, 9]
    seen = [0, 1, 2, 3, 4, 5, 0, 0, 0, 0]
    write_new(tmp_path, "v6", shown_as(seen), labels)
    (row,) = rows("auto")
    assert (row["name"], row["num_images"], row["acc"], row["against"]) == ("CIFAR-10.1 v6", 10, 0.6, 0.75)
    assert row["drop"] == pytest.approx(0.15)
    # Newcombe's interval from Wilson's two.
    (low, high), (own_low, own_high) = (
        stats.binomtest(k, n).proportion_ci(method="wilson") for k, n in ((6, 10), (15, 20))
    )
    assert (row["low"], row["high"]) == pytest.approx((low, high))
    assert row["drop_low"] == pytest.approx(0.15 - math.hypot(0.75 - own_low, high - 0.6))
    assert row["drop_high"] == pytest.approx(0.15 + math.hypot(own_high - 0.75, 0.6 - low))
    assert (row["p"], row["paired"], "severities" in row) == (None, False, False)
    assert row["loss"] == pytest.approx(mean_loss(seen, labels), rel=1e-5)


def test_the_note_names_what_a_set_of_some_classes_is_compared_with(rows, tmp_path):
    write_new(tmp_path, "v6", shown_as([0, 1]), [0, 1])
    (row,) = rows("auto")
    assert (row["against"], row["note"]) == (1.0, "the drop is against the 4 test images of these classes")


def test_severities_are_averaged_by_image(rows, tmp_path):
    first = [SEEN, SEEN, SEEN, [0] * 20, [0] * 20]
    second = [SEEN, [0] * 20, [0] * 20, [0] * 20, [0] * 20]
    by_kind = {"fog": first, "snow": second}
    write_corrupted(tmp_path, {kind: np.concatenate([*map(shown_as, each)]) for kind, each in by_kind.items()}, LABELS)
    mean, snow, fog = rows("CIFAR-10-C")
    assert [row["name"] for row in (mean, snow, fog)] == ["CIFAR-10-C, mean of 2", "CIFAR-10-C snow", "CIFAR-10-C fog"]
    assert fog["severities"] == [0.75, 0.75, 0.75, 0.1, 0.1]
    assert snow["severities"] == [0.75, 0.1, 0.1, 0.1, 0.1]
    assert mean["severities"] == pytest.approx([0.75, 0.425, 0.425, 0.1, 0.1])
    right = np.equal(SEEN, LABELS).astype(float)
    for row, each in ((fog, first), (snow, second), (mean, [*first, *second])):
        scores = np.mean([np.equal(seen, LABELS) for seen in each], axis=0)
        assert (row["num_images"], row["paired"], row["against"]) == (20, True, 0.75)
        assert row["acc"] == pytest.approx(scores.mean())
        test = stats.ttest_rel(right, scores)
        interval = test.confidence_interval()
        expected = ((right - scores).mean(), interval.low, interval.high, test.pvalue)
        assert (row["drop"], row["drop_low"], row["drop_high"], row["p"]) == pytest.approx(expected)
        half = stats.t.ppf(0.975, 19) * stats.sem(scores)
        assert (row["low"], row["high"]) == pytest.approx((scores.mean() - half, min(1, scores.mean() + half)))
        assert row["loss"] == pytest.approx(np.mean([mean_loss(seen, LABELS) for seen in each]), rel=1e-5)


def test_the_mean_of_papers_stands_beside_that_of_all(rows, tmp_path):
    right = {kind: shown_as(LABELS * 5) for kind in COMMON}
    wrong = {kind: shown_as([(k + 1) % 10 for k in LABELS] * 5) for kind in EXTRA}
    write_corrupted(tmp_path, right | wrong, LABELS)
    found = {row["name"]: row for row in rows("auto")}
    assert len(found) == 21
    assert found["CIFAR-10-C, mean of 15"]["acc"] == 1
    assert found["CIFAR-10-C, mean of 19"]["acc"] == pytest.approx(15 / 19)
    # Where each image does alike, one image tells as much as all its versions.
    wilson = stats.binomtest(20, 20).proportion_ci(method="wilson")
    assert (found["CIFAR-10-C fog"]["low"], found["CIFAR-10-C fog"]["high"]) == pytest.approx((wilson.low, 1))


def test_corrupted_images_in_another_order_are_not_paired(rows, tmp_path):
    shifted = [*LABELS[1:], LABELS[0]]
    write_corrupted(tmp_path, {"fog": shown_as([*shifted, *[0] * 20, *shifted, *[0] * 40])}, shifted)
    (row,) = rows("auto")
    assert (row["paired"], row["p"], row["acc"]) == (False, None, pytest.approx(0.46))
    scores = np.mean([np.equal(seen, shifted) for seen in (shifted, [0] * 20, shifted, [0] * 20, [0] * 20)], axis=0)
    welch = stats.ttest_ind(np.equal(SEEN, LABELS).astype(float), scores, equal_var=False).confidence_interval()
    assert (row["drop"], row["drop_low"], row["drop_high"]) == pytest.approx((0.29, welch.low, welch.high))


def test_peoples_labels_are_paired(rows, tmp_path):
    shares = np.eye(10)[LABELS]
    shares[15] = [0.6, 0, 0, 0, 0, 0.4, 0, 0, 0, 0]  # people take it for what the classifier sees
    shares[3] = [0.1, 0, 0, 0.9, 0, 0, 0, 0, 0, 0]
    np.save(tmp_path / "cifar10h-counts.npy", (shares * 50).round().astype(int))
    (row,) = rows("CIFAR-10H")
    assert (row["acc"], row["against"], row["drop"]) == (0.8, 0.75, pytest.approx(-0.05))
    assert row["p"] == 1  # of one image that differs
    logits = torch.tensor([[-abs(k - level) for k in range(10)] for level in SEEN], dtype=torch.float64)
    expected = -(torch.from_numpy(shares) * logits.log_softmax(1)).sum(1).mean().item()
    assert row["loss"] == pytest.approx(expected, rel=1e-5)


def test_labels_of_validation_images(rows, tmp_path):
    worse = [*LABELS[:15], 0, 0, 0, 0, 0]
    write_noisy(tmp_path / "CIFAR-10_human.pt", clean_label=LABELS, worse_label=worse)
    found = {row["name"]: row for row in rows("auto", split="val")}
    assert found["CIFAR-10N aggre"]["acc"] == found["CIFAR-10N aggre"]["against"] == 0.5
    row = found["CIFAR-10N worse"]
    assert (row["num_images"], row["acc"], row["drop"]) == (10, 1.0, -0.5)
    assert row["p"] == pytest.approx(2 * 0.5**5)  # five images, all in one direction


def test_a_limit_leaves_the_same_images_out(rows, tmp_path):
    write_corrupted(tmp_path, {"fog": shown_as([*LABELS, *[0] * 20, *LABELS, *LABELS, *LABELS])}, LABELS)
    np.save(tmp_path / "cifar10h-counts.npy", 50 * np.eye(10, dtype=int)[LABELS])
    fog, human, *corrupted = rows("auto", corruptions=True, limit_test_batches=2)
    assert {row["num_images"] for row in (fog, human, *corrupted)} == {12}
    assert fog["severities"] == [1, pytest.approx(2 / 12), 1, 1, 1]
    assert human["acc"] == human["against"] == 1


def test_own_corruptions(rows):
    mean, *found = rows(corruptions=True)
    assert [row["name"] for row in found] == [f"corruptions {kind}" for kind in kinds(3)]
    assert mean["name"] == "corruptions, mean of 12"
    assert mean["acc"] == pytest.approx(np.mean([row["acc"] for row in found]))
    assert mean["severities"] == pytest.approx(np.mean([row["severities"] for row in found], axis=0).tolist())
    assert all("not CIFAR-10-C" in row["note"] and row["paired"] for row in (mean, *found))
    by_name = {row["name"].removeprefix("corruptions "): row for row in found}
    for kind in ("rotation", "translation", "gaussian_blur", "contrast"):  # the brightness stays
        assert by_name[kind]["severities"] == [0.75] * 5
        assert (by_name[kind]["drop"], by_name[kind]["p"]) == (0, 1)
    # The third severity moves the brightness by 46, two classes: 1 of 20 may meet its own by that.
    assert by_name["brightness"]["severities"][2] <= 0.1


def test_the_size_of_a_batch_has_no_part_in_what_is_corrupted(rows, monkeypatch):
    monkeypatch.setattr("cifar_lightning.engine.drops._IMAGES_PER_DRAW", 7)
    found = [[row["loss"] for row in rows(corruptions=True, batch_size=batch_size)] for batch_size in (3, 8, 20)]
    assert found[1] == pytest.approx(found[0], rel=1e-5)
    assert found[2] == pytest.approx(found[0], rel=1e-5)


def test_outputs_that_are_not_finite_are_wrong(rows, tmp_path):
    def forward(self, images: torch.Tensor) -> torch.Tensor:
        dark = images.mean((1, 2, 3)) * 255 < 1
        return torch.where(dark[:, None], math.nan, -(images.mean((1, 2, 3))[:, None] * 255 - self.levels).abs())

    write_new(tmp_path, "v6", shown_as([0, 0, 3, 4]), [0, 0, 3, 4])
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Brightness, "forward", forward)
        (row,) = rows("auto", seen=[1, 1, 2, 3, 4, 5, 6, 7, 8, 9])
    assert row["acc"] == 0.5
    assert math.isnan(row["loss"])
