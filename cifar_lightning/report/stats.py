"""Statistics of accuracies: intervals, means over seeds, paired tests. Values are in, and results are, in [0, 1].

``scipy.stats`` takes most of a second to import, so each function imports what it needs when it is called. What is
needed of many runs is in ``scipy.special``, which takes a tenth of that.
"""

import math
import statistics
from collections.abc import Sequence
from dataclasses import dataclass

LEVEL = 0.95
"""Confidence level of every interval."""

_NO_SPREAD = 1e-12
"""A deviation below it is one of rounding."""


@dataclass(frozen=True)
class Summary:
    """A mean over runs.

    Attributes:
        num: Number of values.
        mean: Their mean.
        sd: Their sample standard deviation; nan of a single value.
        low: Lower end of the 95 % interval of the mean, by Student's t; nan of a single value.
        high: Upper end.
    """

    num: int
    mean: float
    sd: float
    low: float
    high: float


@dataclass(frozen=True)
class PairedTest:
    """A paired t-test: the same seeds, one way and another.

    Attributes:
        difference: The differences, second minus first.
        p: Two-sided p-value of no difference; nan of a single pair, 1 where all differences are 0. Where they are all
            alike and not 0, of which the t-test knows nothing, that of the exact test by signs.
    """

    difference: Summary
    p: float


@dataclass(frozen=True)
class PairedAccuracies:
    """Two classifiers on the same N images.

    Attributes:
        num_images: N.
        only_first: Images that only the first has right.
        only_second: Images that only the second has right.
        difference: Accuracy of the second minus that of the first.
        low: Lower end of its 95 % interval.
        high: Upper end.
        p: Two-sided p-value of no difference, by McNemar's exact test.
    """

    num_images: int
    only_first: int
    only_second: int
    difference: float
    low: float
    high: float
    p: float


def accuracy_interval(num_correct: int, num_images: int) -> tuple[float, float]:
    """The 95 % interval of an accuracy by its number of images.

    Raises:
        ValueError: If there are no images, or not so many can be right.

    Source: Wilson 1927.
    """
    from scipy.stats import binomtest

    interval = binomtest(num_correct, num_images).proportion_ci(LEVEL, method="wilson")
    return float(interval.low), float(interval.high)


def accuracy_difference(
    num_correct: int, num_images: int, other_correct: int, other_images: int
) -> tuple[float, float, float]:
    """The accuracy on other images minus that on the first, and the ends of its 95 % interval.

    Source: Newcombe 1998, "Interval estimation for the difference between independent proportions", method 10.
    """
    first, second = num_correct / num_images, other_correct / other_images
    low, high = accuracy_interval(num_correct, num_images)
    other_low, other_high = accuracy_interval(other_correct, other_images)
    difference = second - first
    below = math.hypot(second - other_low, high - first)
    above = math.hypot(other_high - second, first - low)
    return difference, difference - below, difference + above


def summary(values: Sequence[float]) -> Summary:
    """Mean, spread and interval of at least one value.

    Raises:
        statistics.StatisticsError: If there is none.
    """
    from scipy.special import stdtrit

    mean = statistics.fmean(values)
    if len(values) == 1:
        return Summary(1, mean, math.nan, math.nan, math.nan)
    sd = statistics.stdev(values)
    half = float(stdtrit(len(values) - 1, (1 + LEVEL) / 2)) * sd / math.sqrt(len(values))
    return Summary(len(values), mean, sd, mean - half, mean + half)


def paired_test(first: Sequence[float], second: Sequence[float]) -> PairedTest:
    """Student's paired t-test of values that belong together, such as accuracies of the same seeds.

    Raises:
        ValueError: If the numbers of values differ.
    """
    from scipy.special import stdtr

    differences = [after - before for before, after in zip(first, second, strict=True)]
    difference = summary(differences)
    if difference.num == 1:
        return PairedTest(difference, math.nan)
    if difference.sd < _NO_SPREAD:
        return PairedTest(difference, 1.0 if abs(difference.mean) < _NO_SPREAD else 2.0 ** (1 - difference.num))
    error = difference.sd / math.sqrt(difference.num)
    return PairedTest(difference, 2 * float(stdtr(difference.num - 1, -abs(difference.mean) / error)))


def holm(p_values: Sequence[float]) -> list[float]:
    """P-values corrected for their number; nan stays, and does not count.

    Source: Holm 1979.
    """
    corrected = list(p_values)
    order = sorted((i for i, p in enumerate(p_values) if not math.isnan(p)), key=lambda i: p_values[i])
    largest = 0.0
    for rank, i in enumerate(order):
        largest = max(largest, min(1.0, p_values[i] * (len(order) - rank)))
        corrected[i] = largest
    return corrected


def seeds_needed(difference: float, sd: float, *, tests: int = 1, power: float = 0.8, most: int = 10_000) -> int | None:
    """How many pairs of runs ``paired_test`` needs to see a difference, at p < 0.05.

    Args:
        difference: The mean difference that is to be seen.
        sd: Standard deviation of the differences.
        tests: How many tests are made; p is corrected as for the smallest of them.
        power: Probability with which it is to be seen.
        most: Number above which None is returned.

    Returns:
        The number, at least 2; None where it is above ``most`` or nothing is known of difference or spread.
    """
    from scipy.special import nctdtr, stdtrit

    if math.isnan(sd) or abs(difference) < _NO_SPREAD:
        return None
    alpha = (1 - LEVEL) / tests
    if sd < _NO_SPREAD:
        return math.ceil(1 - math.log2(alpha))
    effect = abs(difference) / sd

    def is_seen(num: int) -> bool:
        limit = stdtrit(num - 1, 1 - alpha / 2)
        return bool(1 - nctdtr(num - 1, effect * math.sqrt(num), limit) >= power)  # the other side is next to nothing

    normal = statistics.NormalDist()
    # That of a test that knows the spread: a few too low.
    num = max(2, math.floor(((normal.inv_cdf(1 - alpha / 2) + normal.inv_cdf(power)) / effect) ** 2))
    while num <= most and not is_seen(num):
        num += 1
    return num if num <= most else None


def paired_accuracies(first: Sequence[bool], second: Sequence[bool]) -> PairedAccuracies:
    """Two classifiers on the same images: difference of their accuracies, with McNemar's exact test.

    Args:
        first: Whether the first has each image right.
        second: Whether the second has.

    Raises:
        ValueError: If the numbers of images differ, or there are none.

    Source: McNemar 1947; Agresti and Min 2005 for the interval.
    """
    from scipy.stats import binomtest, norm

    pairs = list(zip(first, second, strict=True))
    if not pairs:
        raise ValueError("there must be at least 1 image to compare, got 0")
    num = len(pairs)
    only_first = sum(bool(a) and not b for a, b in pairs)
    only_second = sum(bool(b) and not a for a, b in pairs)
    difference = (only_second - only_first) / num
    p = float(binomtest(only_first, only_first + only_second).pvalue) if only_first + only_second else 1.0
    # Half an image is added to each of the four cells, which makes the interval right for few disagreements, too.
    total, discordant = num + 2, only_first + only_second + 1
    centre = (only_second - only_first) / total
    half = float(norm.ppf((1 + LEVEL) / 2)) * math.sqrt(discordant / total - centre**2) / math.sqrt(total)
    low, high = max(-1.0, centre - half), min(1.0, centre + half)
    return PairedAccuracies(num, only_first, only_second, difference, low, high, p)


def mean_difference(first: Sequence[float], second: Sequence[float]) -> tuple[float, float, float]:
    """The mean of the second values minus that of the first, which are others, and the ends of its 95 % interval.

    Of a single value the ends are nan; of values without any spread they are the difference.

    Source: Welch 1947.
    """
    from scipy.stats import t

    one, other = summary(first), summary(second)
    difference = other.mean - one.mean
    if min(one.num, other.num) == 1:
        return difference, math.nan, math.nan
    shares = [each.sd**2 / each.num for each in (one, other)]
    if not (variance := sum(shares)):
        return difference, difference, difference
    freedom = variance**2 / sum(share**2 / (each.num - 1) for share, each in zip(shares, (one, other), strict=True))
    half = float(t.ppf((1 + LEVEL) / 2, freedom)) * math.sqrt(variance)
    return difference, difference - half, difference + half
