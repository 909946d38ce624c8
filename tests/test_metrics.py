import math

import pytest
import torch
from torch import nn

from cifar_lightning.metrics import RunningMetrics, at_temperature, evaluate
from cifar_lightning.tta import augmented_logits


@pytest.fixture
def logits() -> torch.Tensor:
    """Softmax of (log 2, 0, 0) is (1/2, 1/4, 1/4): predictions 0, 1, 0, 2, each with confidence 1/2."""
    return math.log(2) * torch.tensor([[1.0, 0, 0], [0, 1, 0], [1, 0, 0], [0, 0, 1]])


def test_hand_example(logits):
    evaluation = evaluate(logits, torch.tensor([0, 1, 1, 0]))
    assert evaluation.num_images == 4
    assert evaluation.acc == evaluation.balanced_acc == 0.5
    assert evaluation.preds.tolist() == [0, 1, 0, 2]
    assert evaluation.confusion.tolist() == [[1, 0, 1], [1, 1, 0], [0, 0, 0]]
    assert evaluation.class_acc[:2] == [0.5, 0.5]
    assert math.isnan(evaluation.class_acc[2])  # no image of class 2
    assert evaluation.loss == pytest.approx((2 * math.log(2) + 2 * math.log(4)) / 4)
    assert evaluation.ece == pytest.approx(0.0, abs=1e-6)  # half right at confidence one half
    assert evaluation.confidence.tolist() == pytest.approx([0.5] * 4)


def test_calibration_error_is_the_weighted_mean_of_each_bins_gap(logits):
    sure = torch.tensor([[math.log(18), 0.0, 0.0]])  # confidence 0.9
    evaluation = evaluate(torch.cat([logits, sure]), torch.tensor([0, 1, 1, 1, 1]))
    assert evaluation.ece == pytest.approx(4 / 5 * abs(0.5 - 2 / 4) + 1 / 5 * 0.9, abs=1e-6)


def test_balanced_accuracy_counts_small_classes_as_much_as_large_ones():
    targets = torch.tensor([0] * 8 + [1] * 2)
    always_the_first = torch.tensor([[1.0, 0.0, 0.0]]).expand(10, 3)
    evaluation = evaluate(always_the_first, targets)
    assert (evaluation.acc, evaluation.balanced_acc) == (0.8, 0.5)  # no image of the third class


def test_perfect_and_constant_predictors():
    targets = torch.arange(40) % 4
    perfect = evaluate(100 * torch.nn.functional.one_hot(targets).float(), targets)
    assert (perfect.acc, perfect.class_acc) == (1.0, [1.0] * 4)
    assert perfect.loss == pytest.approx(0, abs=1e-6)
    constant = evaluate(torch.tensor([[3.0, 0, 0, 0]]).expand(40, 4), targets)
    assert (constant.acc, constant.class_acc) == (0.25, [1.0, 0, 0, 0])


def test_evaluate_equals_a_loop_over_images():
    generator = torch.Generator().manual_seed(0)
    logits, targets = torch.randn(200, 5, generator=generator), torch.randint(5, (200,), generator=generator)
    evaluation = evaluate(logits, targets)
    num_correct, loss = 0, 0.0
    for row, target in zip(logits.tolist(), targets.tolist(), strict=True):
        num_correct += row.index(max(row)) == target
        loss += math.log(sum(math.exp(value) for value in row)) - row[target]
    assert evaluation.acc == num_correct / 200
    assert evaluation.balanced_acc == pytest.approx(sum(evaluation.class_acc) / 5, abs=1e-12)
    for label, acc in enumerate(evaluation.class_acc):
        hits = [
            pred == label
            for pred, target in zip(evaluation.preds.tolist(), targets.tolist(), strict=True)
            if target == label
        ]
        assert acc == sum(hits) / len(hits)  # exactly: reports print these numbers
    assert evaluation.loss == pytest.approx(loss / 200)
    assert int(evaluation.confusion.sum()) == 200


def test_bf16_logits_are_evaluated_in_float32(logits):
    targets = torch.tensor([0, 1, 1, 0])
    assert evaluate(logits.bfloat16(), targets).scalars() == evaluate(logits.bfloat16().float(), targets).scalars()


def test_equal_logits_give_one_prediction_per_image():
    evaluation = evaluate(torch.zeros(6, 3), torch.tensor([0, 0, 1, 1, 2, 2]))
    assert evaluation.acc == 1 / 3  # any class is correct for two of six images
    assert evaluation.loss == pytest.approx(math.log(3))
    assert evaluation.confidence.tolist() == pytest.approx([1 / 3] * 6)


def test_a_network_that_diverged_has_a_loss_of_nan_or_infinity():
    targets = torch.tensor([0, 1, 0])
    assert math.isnan(evaluate(torch.full((3, 2), math.nan), targets).loss)
    assert evaluate(torch.tensor([[0.0, 1], [0, -math.inf], [1, 0]]), targets).loss == math.inf


def test_bad_input(logits):
    with pytest.raises(ValueError, match=r"targets must be in \[0, 3\), got 0 to 3"):
        evaluate(logits, torch.tensor([0, 1, 2, 3]))
    with pytest.raises(ValueError, match=r"targets must be in \[0, 3\), got -1 to 2"):
        evaluate(logits, torch.tensor([0, 1, 2, -1]))
    with pytest.raises(ValueError, match="there must be at least 1 image, got 0"):
        evaluate(torch.empty(0, 3), torch.empty(0, dtype=torch.int64))


@pytest.mark.parametrize("level", [0, 1, 2])
def test_augmented_logits_equal_a_loop_over_crops(level):
    generator = torch.Generator().manual_seed(0)
    images = torch.randint(256, (4, 3, 8, 8), dtype=torch.uint8, generator=generator)
    weight = torch.randn(3 * 8 * 8, 5, generator=generator)

    def classify(
        some: torch.Tensor,
    ) -> torch.Tensor:  # not linear, so a mean of images would differ from a mean of logits
        return torch.tanh(some.flatten(1).float() @ weight / 1000)

    crops = {0: [(1.0, 1, 1, False)], 1: [(1 / 2, 1, 1, flip) for flip in (False, True)]}
    crops[2] = [(1 / 4, 1, 1, flip) for flip in (False, True)]
    crops[2] += [(1 / 8, offset, offset, flip) for offset in (0, 2) for flip in (False, True)]
    padded = torch.nn.functional.pad(images.float(), (1, 1, 1, 1), mode="reflect").to(torch.uint8)
    expected = torch.zeros(4, 5)
    for share, top, left, flip in crops[level]:
        crop = padded[:, :, top : top + 8, left : left + 8]
        expected += share * classify(crop.flip(-1) if flip else crop)
    plain, augmented = augmented_logits(classify, images, level=level)
    torch.testing.assert_close(augmented, expected)
    assert torch.equal(plain, classify(images))


def test_augmented_logits_average_in_float32_and_leave_no_graph():
    images = torch.zeros(2, 3, 4, 4, dtype=torch.uint8)
    bias = torch.tensor([1.0, 0.0], requires_grad=True)
    for logits in augmented_logits(lambda some: bias.expand(len(some), 2).bfloat16(), images, level=2):
        assert logits.dtype == torch.float32
        assert not logits.requires_grad
        assert torch.equal(logits, torch.tensor([[1.0, 0.0], [1.0, 0.0]]))
    with pytest.raises(ValueError, match="level must be 0, 1 or 2, got 3"):
        augmented_logits(lambda some: some, images, level=3)


@pytest.mark.parametrize("num_batches", [1, 63, 64, 65, 200])
def test_running_metrics_equal_sums_over_all_images(num_batches):
    running, generator = RunningMetrics(), torch.Generator().manual_seed(0)
    num_images, loss_sum, num_correct = 0, 0.0, 0
    for batch in range(num_batches):
        size = 3 if batch == num_batches - 1 else 4
        logits, targets = torch.randn(size, 5, generator=generator), torch.randint(5, (size,), generator=generator)
        loss = nn.functional.cross_entropy(logits, targets)
        running.update(loss, logits, targets, step=batch)
        num_images, loss_sum = num_images + size, loss_sum + size * loss.item()
        num_correct += int((logits.argmax(1) == targets).sum())
    taken = running.take()
    assert (taken[0], taken[2]) == (num_images, num_correct)
    assert taken[1] == pytest.approx(loss_sum)
    assert running.take() == (0, 0.0, 0)


@pytest.mark.parametrize("bad", [0, 63, 64, 70, 79])
def test_first_not_finite_returns_the_number_of_the_step(bad):
    running = RunningMetrics()
    for step in range(80):
        update(running, step, loss=math.nan if step >= bad else 1.0)
    assert running.first_not_finite() == bad
    running.take()
    assert running.first_not_finite() is None


@pytest.mark.parametrize("resumed_after", [1, 40, 64, 66])
@pytest.mark.parametrize("bad", [66, 79, None])
def test_first_not_finite_returns_it_after_resuming_too(resumed_after, bad):
    running, resumed = RunningMetrics(), RunningMetrics()
    for step in range(resumed_after):
        update(running, step, loss=1.0)
    resumed.load_state_dict(running.state_dict(), torch.device("cpu"))
    assert resumed.first_not_finite() is None
    for step in range(resumed_after, 80):
        update(resumed, step, loss=math.inf if step == bad else 1.0)
    assert resumed.first_not_finite() == bad


def update(running: RunningMetrics, step: int, *, loss: float) -> None:
    running.update(torch.tensor(loss), torch.zeros(2, 5), torch.zeros(2, dtype=torch.int64), step=step)


def test_brier_score_and_log_loss_are_those_of_scikit_learn():
    sklearn = pytest.importorskip("sklearn.metrics")
    generator = torch.Generator().manual_seed(0)
    logits, targets = 3 * torch.randn(300, 12, generator=generator), torch.randint(12, (300,), generator=generator)
    evaluation, probabilities = evaluate(logits, targets), logits.double().softmax(1)
    assert torch.equal(evaluation.logits, logits)
    labels = range(12)
    expected = sklearn.brier_score_loss(targets, probabilities, labels=labels, scale_by_half=False)
    assert evaluation.brier == pytest.approx(expected, rel=1e-6)
    assert evaluation.loss == pytest.approx(sklearn.log_loss(targets, probabilities, labels=labels), rel=1e-6)
    assert evaluation.balanced_acc == pytest.approx(sklearn.balanced_accuracy_score(targets, evaluation.preds))
    assert evaluation.top5_acc == sklearn.top_k_accuracy_score(targets, logits, k=5, labels=labels)


def test_top_5_is_for_more_than_ten_classes():
    targets = torch.arange(10)
    assert evaluate(torch.eye(10), targets).top5_acc is None
    logits = torch.arange(11.0).expand(11, 11)
    assert evaluate(logits, torch.arange(11)).top5_acc == 5 / 11  # those of the last five classes


def test_a_temperature_changes_the_probabilities_alone():
    generator = torch.Generator().manual_seed(0)
    logits, targets = 3 * torch.randn(300, 5, generator=generator), torch.randint(5, (300,), generator=generator)
    plain = evaluate(logits, targets)
    softened, expected = at_temperature(plain, targets, 2.5), evaluate(logits / 2.5, targets)
    for name in ("loss", "ece", "brier"):
        assert getattr(softened, name) == getattr(expected, name) != getattr(plain, name)
    assert torch.equal(softened.confidence, expected.confidence)
    assert torch.equal(softened.logits, logits / 2.5)
    for name in ("acc", "balanced_acc", "top5_acc", "class_acc", "preds", "confusion"):
        assert getattr(softened, name) is getattr(plain, name)
    assert at_temperature(plain, targets, 1.0).scalars() == plain.scalars()
