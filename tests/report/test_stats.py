"""Statistics against published values, and against formulas worked out by hand."""

import math
import statistics

import pytest
from scipy.stats import nct, t, ttest_rel

from cifar_lightning.report.stats import (
    accuracy_difference,
    accuracy_interval,
    holm,
    paired_accuracies,
    paired_test,
    seeds_needed,
    summary,
)

SLEEP = (
    [0.7, -1.6, -0.2, -1.2, -0.1, 3.4, 3.7, 0.8, 0.0, 2.0],
    [1.9, 0.8, 1.1, 0.1, -0.1, 4.4, 5.5, 1.6, 4.6, 3.4],
)
"""Hours of additional sleep of ten patients by two drugs: Student 1908, the first paired test."""


@pytest.mark.parametrize(
    ("num_correct", "num_images", "expected"),
    [
        (81, 263, (0.2553, 0.3662)),  # Newcombe 1998, "Two-sided confidence intervals for the single proportion"
        (15, 148, (0.0624, 0.1605)),
        (0, 20, (0.0000, 0.1611)),
        (1, 29, (0.0061, 0.1718)),
        (20, 20, (0.8389, 1.0000)),
    ],
)
def test_wilsons_interval_is_the_published_one(num_correct, num_images, expected):
    assert accuracy_interval(num_correct, num_images) == pytest.approx(expected, abs=5e-5)


@pytest.mark.parametrize(("num_correct", "num_images"), [(0, 0), (3, 2)])
def test_an_interval_needs_images(num_correct, num_images):
    with pytest.raises(ValueError, match="must"):
        accuracy_interval(num_correct, num_images)


@pytest.mark.parametrize(
    ("other", "first", "low", "high"),
    [
        ((56, 70), (48, 80), 0.0524, 0.3339),  # Newcombe 1998, table II, method 10
        ((9, 10), (3, 10), 0.1705, 0.8090),
        ((10, 10), (0, 20), 0.6791, 1.0000),
        ((5, 56), (0, 29), -0.0381, 0.1926),
    ],
)
def test_the_difference_of_two_accuracies_has_newcombes_interval(first, other, low, high):
    difference = accuracy_difference(*first, *other)
    assert difference == pytest.approx((other[0] / other[1] - first[0] / first[1], low, high), abs=5e-5)


def test_a_mean_has_students_interval():
    found = summary([0.1, 0.2, 0.3, 0.4, 0.5])
    half = 2.7764451 * math.sqrt(0.025 / 5)  # t with 4 degrees of freedom, from a table
    assert (found.num, found.mean, found.sd) == (5, pytest.approx(0.3), pytest.approx(math.sqrt(0.025)))
    assert (found.low, found.high) == (pytest.approx(0.3 - half), pytest.approx(0.3 + half))


def test_a_single_value_has_no_spread():
    found = summary([0.5])
    assert (found.num, found.mean) == (1, 0.5)
    assert all(map(math.isnan, (found.sd, found.low, found.high)))
    with pytest.raises(statistics.StatisticsError, match="at least one"):
        summary([])


def test_the_paired_test_of_students_own_data():
    found = paired_test(*SLEEP)
    assert found.difference.mean == pytest.approx(1.58)
    assert found.p == pytest.approx(0.002833, abs=5e-7)
    assert (found.difference.low, found.difference.high) == (
        pytest.approx(0.7001142, abs=1e-6),
        pytest.approx(2.4598858, abs=1e-6),
    )
    assert paired_test(SLEEP[1], SLEEP[0]).p == found.p
    assert found.p == pytest.approx(ttest_rel(*SLEEP).pvalue, rel=1e-12)


def test_the_paired_test_where_the_t_test_knows_nothing():
    assert math.isnan(paired_test([0.5], [0.6]).p)
    assert paired_test([0.5, 0.6], [0.5, 0.6]).p == 1
    rounded = paired_test([0.51, 0.52, 0.53], [0.52, 0.53, 0.54])  # as 0.52 - 0.51 is not 0.53 - 0.52 in floats
    assert rounded.p == 0.25  # 2 of 8 choices of signs
    with pytest.raises(ValueError, match="longer"):
        paired_test([0.5], [0.5, 0.6])


@pytest.mark.parametrize(
    ("p_values", "expected"),
    [
        ([0.01, 0.04, 0.03, 0.005], [0.03, 0.06, 0.06, 0.02]),  # as R's p.adjust
        ([0.01, 0.02, 0.03], [0.03, 0.04, 0.04]),
        ([0.6, 0.7], [1.0, 1.0]),
        ([], []),
    ],
)
def test_holms_correction(p_values, expected):
    assert holm(p_values) == pytest.approx(expected)


def test_what_is_not_tested_does_not_count_for_holm():
    corrected = holm([math.nan, 0.02, math.nan, 0.01])
    assert [math.isnan(p) for p in corrected] == [True, False, True, False]
    assert (corrected[1], corrected[3]) == (0.02, 0.02)


@pytest.mark.parametrize(("effect", "expected"), [(0.2, 199), (0.5, 34), (0.8, 15), (1.0, 10), (2.0, 5), (100.0, 2)])
def test_the_number_of_seeds_is_that_of_tables_of_power(effect, expected):
    """Published tables of the paired t-test, two-sided, at 0.05 with power 0.8; G*Power has the same."""
    assert seeds_needed(0.01 * effect, 0.01) == expected
    assert seeds_needed(-0.01 * effect, 0.01) == expected


def test_where_no_number_of_seeds_is_known():
    assert seeds_needed(0.0, 0.01) is None
    assert seeds_needed(0.01, math.nan) is None
    assert seeds_needed(0.0001, 0.01) is None  # 78,000
    assert seeds_needed(0.0002, 0.01, most=100_000) == pytest.approx(19_625, abs=2)


@pytest.mark.parametrize(("tests", "expected"), [(1, 6), (2, 7), (10, 9)])
def test_as_many_seeds_as_the_test_by_signs_needs_where_there_is_no_spread(tests, expected):
    assert seeds_needed(0.01, 0.0, tests=tests) == expected
    for num in (expected - 1, expected):
        p = paired_test([0.5] * num, [0.6] * num).p * tests
        assert (p <= 0.05) == (num == expected)


def test_more_tests_need_more_seeds():
    assert seeds_needed(0.01, 0.01) == 10  # as tables of the power of t-tests have it
    num = seeds_needed(0.01, 0.01, tests=6)
    power = [float(nct.sf(t.isf(0.05 / 6 / 2, n - 1), n - 1, math.sqrt(n))) for n in (num - 1, num)]
    assert power[0] < 0.8 <= power[1]


def test_a_difference_of_accuracies_is_at_most_one():
    assert paired_accuracies([False] * 10, [True] * 10).high == 1
    assert paired_accuracies([True] * 10, [False] * 10).low == -1


def bits(both: int, only_first: int, only_second: int, neither: int) -> tuple[list[bool], list[bool]]:
    cells = [(True, True)] * both + [(True, False)] * only_first + [(False, True)] * only_second
    pairs = cells + [(False, False)] * neither
    return [first for first, _ in pairs], [second for _, second in pairs]


def test_mcnemars_exact_test():
    found = paired_accuracies(*bits(70, 2, 12, 16))
    assert (found.num_images, found.only_first, found.only_second) == (100, 2, 12)
    assert found.difference == pytest.approx(0.10)
    assert found.p == pytest.approx(2 * (1 + 14 + 91) / 2**14)  # 2 or fewer of 14 coins
    centre, half = 10 / 102, 1.959964 * math.sqrt(15 - 100 / 102) / 102  # Agresti and Min: half an image a cell
    assert (found.low, found.high) == (pytest.approx(centre - half), pytest.approx(centre + half))


def test_classifiers_that_agree_do_not_differ():
    found = paired_accuracies(*bits(8, 0, 0, 2))
    assert (found.difference, found.p) == (0, 1)
    assert found.low == -found.high < 0
    with pytest.raises(ValueError, match="at least 1 image"):
        paired_accuracies([], [])
    with pytest.raises(ValueError, match="longer"):
        paired_accuracies([True], [True, False])
