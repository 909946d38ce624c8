"""Confidences that mean what they say: one temperature, by which logits are divided before the softmax."""

import math

from jaxtyping import Float, Int64
from torch import Tensor

MIN_TEMPERATURE, MAX_TEMPERATURE = 0.01, 100.0
"""The range of temperatures that are fitted, and that a file may hold."""

MIN_IMAGES = 10
"""Fewest images that a temperature is fitted on: a few may all be right by chance."""

_LOGITS_AT_ONCE = 2**20
"""Logits whose softmax is in memory at one moment."""


def calibrated(logits: Float[Tensor, "n k"], temperature: float | None) -> Float[Tensor, "n k"]:
    """Logits divided by a temperature, whose softmax is the probabilities; as they are where there is none."""
    return logits if temperature is None else logits / temperature


def uncalibrated(logits: Float[Tensor, "n k"], temperature: float | None) -> Float[Tensor, "n k"]:
    """Logits as they were before they were divided by a temperature."""
    return logits if temperature is None else logits * temperature


def in_words(temperature: float | None) -> str:
    """What probabilities are, for people: calibrated or not, and by what."""
    if temperature is None:
        return "uncalibrated and may be too high or too low: train with data.val_size=auto to calibrate them"
    return f"calibrated: temperature {temperature:.3g}, fitted on validation images"


def fit_temperature(logits: Float[Tensor, "n k"], targets: Int64[Tensor, " n"]) -> float:
    """Fit the temperature T at which softmax(logits / T) has the least mean cross entropy.

    In 1 / T the cross entropy is convex, so there is one best value. It is where its slope is 0, and is found in double
    precision within a bracket.

    Each target counts as (N + 1/2) / (N + 1) of its class, and the rest is spread over the others, as Platt has it for
    two classes, with Jeffreys' half a count. With thousands of images that changes T by less than 1 %. But where few
    images are all classified right, the least cross entropy itself is at T = 0, where every answer is certain. This way
    the mean confidence on 20 of them is 20.5 / 21.

    Args:
        logits: Of images that the network was not trained on.
        targets: Their classes; some classes may have no images.

    Returns:
        T, in [``MIN_TEMPERATURE``, ``MAX_TEMPERATURE``]: the nearer end where the best value is beyond, which is the
        upper one for logits that say nothing of the targets, or the contrary; 1 where the logits of each image are all
        equal, so that T has no effect.

    Raises:
        ValueError: If there are no images, a target is not in [0, K), or a logit is not finite.

    Source: Guo et al. 2017 (arXiv:1706.04599) for the temperature; Platt 1999, "Probabilistic outputs for support
    vector machines", for the targets.
    """
    from scipy.optimize import brentq  # late, for runs without validation images

    logits, targets = logits.detach().double().cpu(), targets.cpu()
    check_targets(targets, logits.shape[1])
    if not bool(logits.isfinite().all()):
        raise ValueError("logits must be finite")
    relative = logits - logits.max(1, keepdim=True).values
    if not relative.any():
        return 1.0
    wanted = _mean_under_targets(relative, targets)

    def slope(log_inverse: float) -> float:
        """Of the mean cross entropy along 1 / T; it rises."""
        return _mean_under_softmax(relative, math.exp(log_inverse)) - wanted

    low, high = -math.log(MAX_TEMPERATURE), -math.log(MIN_TEMPERATURE)
    if slope(low) >= 0:
        return MAX_TEMPERATURE
    if slope(high) <= 0:
        return MIN_TEMPERATURE
    return min(max(math.exp(-brentq(slope, low, high, xtol=1e-9)), MIN_TEMPERATURE), MAX_TEMPERATURE)


def check_targets(targets: Int64[Tensor, " n"], num_classes: int) -> None:
    """Check that there are targets, all of them classes.

    Raises:
        ValueError: If there are none, or one is not in [0, K).
    """
    if len(targets) == 0:
        raise ValueError("there must be at least 1 image, got 0")
    low, high = int(targets.min()), int(targets.max())
    if low < 0 or high >= num_classes:
        raise ValueError(f"targets must be in [0, {num_classes}), got {low} to {high}")


def _mean_under_targets(relative: Float[Tensor, "n k"], targets: Int64[Tensor, " n"]) -> float:
    """Mean over images of the logit expected under the target.

    Args:
        relative: Logits, less the largest one of their image.
        targets: The classes.
    """
    num_images, num_classes = relative.shape
    missed = 0.5 / (num_images + 1)
    of_target = relative.gather(1, targets[:, None]).sum().item()
    of_others = (relative.sum().item() - of_target) / (num_classes - 1)
    return ((1 - missed) * of_target + missed * of_others) / num_images


def _mean_under_softmax(relative: Float[Tensor, "n k"], inverse: float) -> float:
    """Mean over images of the logit expected under the softmax of ``inverse`` times the logits."""
    total = 0.0
    for rows in relative.split(max(1, _LOGITS_AT_ONCE // relative.shape[1])):
        weights = (inverse * rows).exp_()  # at most 1; torch's softmax over few classes takes four times as long
        total += ((weights * rows).sum(1) / weights.sum(1)).sum().item()
    return total / len(relative)
