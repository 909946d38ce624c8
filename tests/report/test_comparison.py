"""Groups in order, pairs over common seeds, and what is said of them."""

import csv
import io
import math
import re

import pytest

from cifar_lightning.config.recipe import recipe
from cifar_lightning.report.comparison import Group, Run, compared
from cifar_lightning.report.comparison_files import Context, groups_csv, markdown, page, pairs_csv, runs_csv
from cifar_lightning.report.comparison_text import conclusion, group_rows, pair_rows

CONTEXT = Context("Comparison of x", ["data.val_size=5000"], ["seed 0 stands 2 times"], "python compare.py runs=x")


def group(label, test=(), val=(), *, failed=0, first_seed=0, **more):
    """A group whose runs have these accuracies, from seed 0 on."""
    runs = []
    for i, value in enumerate(test):
        record = {"test/acc": value, "train_seconds": 10.0 + i, **{name: values[i] for name, values in more.items()}}
        record |= {"val/acc": val[i]} if val else {}
        runs.append(Run(f"logs/{label}/{i}", recipe([label]), first_seed + i, "finished", record))
    broken = [Run(f"logs/{label}/f{i}", recipe([label]), None, "failed", reason="too bad") for i in range(failed)]
    return Group(label, [*runs, *broken], {run.seed: run for run in runs})


LOW = group("lr=1", [0.50, 0.51, 0.52], [0.40, 0.41, 0.42])
HIGH = group("lr=2", [0.54, 0.52, 0.56], [0.60, 0.61, 0.62], failed=2)
MIDDLE = group("lr=3", [0.57, 0.58, 0.59], [0.50, 0.51, 0.52])


def labels(comparison):
    return [row.group.label for row in comparison.rows]


def pairs(comparison):
    return [(pair.first.group.label, pair.second.group.label) for pair in comparison.pairs]


def test_groups_are_sorted_by_the_validation_images():
    comparison = compared([LOW, MIDDLE, HIGH], "test/acc")
    assert comparison.ranked_by == "val/acc"
    assert labels(comparison) == ["lr=2", "lr=3", "lr=1"]  # by test images lr=3 would be first
    assert pairs(comparison) == [("lr=2", "lr=3"), ("lr=2", "lr=1"), ("lr=3", "lr=1")]
    assert conclusion(comparison).startswith("lr=2 is best on the validation images: 61.00 % (95 % interval 58.52 to ")


def test_the_order_is_that_of_the_test_images_where_a_group_has_no_others():
    comparison = compared([LOW, MIDDLE, HIGH, group("lr=4", [0.1])], "test/acc")
    assert comparison.ranked_by == "test/acc"
    assert labels(comparison) == ["lr=3", "lr=2", "lr=1", "lr=4"]
    assert "Not all have validation images, so it is chosen on the test images" in conclusion(comparison)


def test_groups_without_a_finished_run_stand_last():
    comparison = compared([group("lr=5", failed=1), LOW, HIGH], "test/acc")
    assert labels(comparison) == ["lr=2", "lr=1", "lr=5"]
    assert comparison.ranked_by == "val/acc"
    assert pairs(comparison) == [("lr=2", "lr=1")]


def test_a_metric_where_less_is_better():
    slow, fast = group("a", [0.5, 0.5], loss=[3.0, 5.0]), group("b", [0.5, 0.5], loss=[1.0, 1.5])
    comparison = compared([slow, fast], "loss")
    assert (labels(comparison), comparison.ranked_by) == (["b", "a"], "loss")
    assert [(row.best, row.worst) for row in comparison.rows] == [(1.0, 1.5), (3.0, 5.0)]
    assert "b is best by loss: 1.2500" in conclusion(comparison)
    assert "b is 2.7500 below a" in conclusion(comparison)


@pytest.mark.parametrize(("metric", "best"), [("seconds_to_val_acc.0.94", "b"), ("flops_per_image", "b")])
def test_less_time_and_work_is_better(metric, best):
    groups = [
        group(label, [0.5, 0.5], **{metric: values}) for label, values in (("a", [31.0, 32.0]), ("b", [11.0, 12.0]))
    ]
    comparison = compared(groups, metric)
    assert comparison.rows[0].best == 11.0
    assert f"{best} is best by {metric}: 11.5" in conclusion(comparison)


def test_of_a_metric_that_is_neither_good_nor_bad_nothing_is_best():
    groups = [group(label, [0.5, 0.5], temperature=values) for label, values in (("a", [1.0, 1.1]), ("b", [2.0, 2.1]))]
    assert "b is highest by temperature: 2.0500" in conclusion(compared(groups, "temperature"))


def test_intervals_of_accuracies_end_at_0_and_1():
    comparison = compared([group("a", [0.95, 1.0]), group("b", [0.0, 0.05])], "test/acc")
    assert [row[4] for row in group_rows(comparison).rows] == ["65.73 – 100.00", "0.00 – 34.27"]
    assert "97.50 % (95 % interval 65.73 to 100.00, n = 2)" in conclusion(comparison)


def test_seeds_that_are_there_already_are_not_asked_for():
    groups = [group(f"lr={lr}", [0.5 + 0.01 * lr + 0.004 * seed * lr for seed in range(5)]) for lr in range(8)]
    comparison = compared(groups, "test/acc")
    [pair] = [
        pair for pair in comparison.pairs if pair.first is comparison.rows[0] and pair.second is comparison.rows[1]
    ]
    assert pair.needed > pair.test.difference.num or pair.p <= 0.05
    alike = compared([group("a", [0.50, 0.51, 0.52]), group("b", [0.51, 0.52, 0.53])], "test/acc")
    assert conclusion(alike).endswith(
        "p = 0.25, n = 3 seeds): no difference is shown; 6 seeds would probably show one of this size."
    )


def test_a_best_group_without_the_metric_is_not_tested():
    groups = [group("a", [0.5, 0.5], [0.9, 0.9]), group("b", [0.5, 0.5], [0.8, 0.8], **{"test/acc_tta": [0.6, 0.6]})]
    text = conclusion(compared(groups, "test/acc_tta"))
    assert text.startswith("a is best on the validation images: 90.00 % ")
    assert text.endswith(" It has no test/acc_tta, so nothing is tested.")


def test_the_paired_difference_by_hand():
    [pair] = compared([HIGH, LOW], "test/acc").pairs
    # Differences 0.04, 0.01, 0.04: mean 0.03, sd 0.01 sqrt(3), so t = sqrt(3) * sqrt(3) = 3 with 2 degrees of freedom,
    # where the distribution has a closed form; 4.302653 is its 97.5th percentile.
    assert pair.test.difference.mean == pytest.approx(0.03)
    assert pair.test.difference.sd == pytest.approx(0.01 * math.sqrt(3))
    assert pair.test.p == pytest.approx(1 - 3 / math.sqrt(2 + 9))
    assert pair.test.difference.high - 0.03 == pytest.approx(4.302653 * 0.01)
    assert pair.p == pair.test.p
    [row] = pair_rows(compared([HIGH, LOW], "test/acc")).rows
    assert row[:5] == ["lr=2", "lr=1", "3", "+3.00 ± 4.30", "0.095"]
    assert conclusion(compared([HIGH, LOW], "test/acc")).endswith(
        "In test/acc lr=2 is 3.00 points above lr=1 (95 % interval -1.30 to 7.30, p = 0.095, n = 3 seeds): "
        f"no difference is shown; {pair.needed} seeds would probably show one of this size."
    )


def test_p_values_are_corrected_for_the_pairs_shown():
    three = compared([LOW, MIDDLE, HIGH], "test/acc")
    raw = {names: pair.test.p for names, pair in zip(pairs(three), three.pairs, strict=True)}
    corrected = {names: pair.p for names, pair in zip(pairs(three), three.pairs, strict=True)}
    smallest = min(raw, key=raw.get)
    assert corrected[smallest] == pytest.approx(min(1, 3 * raw[smallest]))
    two = compared([LOW, MIDDLE, HIGH], "test/acc", LOW)
    assert pairs(two) == [("lr=2", "lr=1"), ("lr=3", "lr=1")]
    assert min(pair.p for pair in two.pairs) == pytest.approx(2 * min(pair.test.p for pair in two.pairs))


def test_a_correction_is_said_of_several_pairs_only():
    one, several = compared([LOW, HIGH], "test/acc"), compared([LOW, MIDDLE, HIGH], "test/acc")
    assert list(pair_rows(one).columns)[4:] == ["p", "seeds needed"]
    assert list(pair_rows(several).columns)[4:] == ["p", "p (Holm)", "seeds needed"]
    assert {len(row) for row in pair_rows(several).rows} == {7}
    assert "after Holm" not in conclusion(one)
    assert re.search(r"p = 0\.\d+ after Holm, n = 3 seeds", conclusion(several))


def test_only_seeds_that_both_have_are_paired():
    late = group("late", [0.61, 0.63], first_seed=1)
    [pair] = compared([LOW, late], "test/acc").pairs
    assert (pair.test.difference.num, pair.test.difference.mean) == (2, pytest.approx(0.105))
    apart = compared([LOW, group("apart", [0.6], first_seed=7)], "test/acc")
    assert apart.pairs[0].test is None
    assert pair_rows(apart).rows == [["apart", "lr=1", "0", "–", "–", "–"]]
    assert conclusion(apart).endswith("shares two seeds with it, so a test needs more seeds for all (seeds=5).")


def test_a_single_seed_is_no_test():
    comparison = compared([group("a", [0.5]), group("b", [0.6])], "test/acc")
    assert pair_rows(comparison).rows == [["b", "a", "1", "+10.00", "–", "–"]]
    assert "so a test needs more seeds" in conclusion(comparison)
    assert "60.00 % (n = 1)" in conclusion(comparison)


def test_of_many_groups_the_best_is_compared_with_the_others():
    many = [group(f"lr={i}", [0.5 + i / 100, 0.51 + i / 100]) for i in range(11)]
    assert len(compared(many[:10], "test/acc").pairs) == 45
    comparison = compared(many, "test/acc")
    assert pairs(comparison) == [("lr=10", f"lr={i}") for i in range(9, -1, -1)]


def test_the_conclusion_about_one_group():
    assert conclusion(compared([LOW], "test/acc")) == "3 runs: test/acc 51.00 % (95 % interval 48.52 to 53.48, n = 3)."
    alone = conclusion(compared([group("a", [0.5])], "test/acc"))
    assert alone == "One run: test/acc 50.00 % (n = 1). Run it with several seeds (seeds=5) to know its spread."
    assert conclusion(compared([group("a", failed=2)], "test/acc")) == "No run has finished with test/acc."


def test_the_conclusion_about_a_difference():
    better = conclusion(compared([LOW, group("b", [0.6, 0.612, 0.618], [0.9, 0.9, 0.9])], "test/acc"))
    assert re.search(r"b is 10\.00 points above lr=1 \(.*, p < 0\.001, n = 3 seeds\): a difference is shown\.$", better)
    worse = conclusion(compared([LOW, group("b", [0.4, 0.412, 0.418], [0.9, 0.9, 0.9])], "test/acc"))
    assert worse.endswith("n = 3 seeds): a difference is shown, the other way round.")
    same = conclusion(compared([LOW, group("b", [0.5, 0.51, 0.52], [0.4, 0.41, 0.42])], "test/acc"))
    assert same.startswith("lr=1, b are level on the validation images: 41.00 %")
    assert "lr=1 is the same as b (95 % interval 0.00 to 0.00, p = 1.00, n = 3" in same


def test_rows_of_groups():
    shown = group_rows(compared([LOW, HIGH], "test/acc"))
    assert dict(zip(shown.columns, shown.rows[0], strict=True)) == {
        "group": "lr=2",
        "n": "3",
        "val/acc %": "61.00",
        "test/acc %": "54.00",
        "sd": "2.00",
        "95 % interval": "49.03 – 58.97",
        "best": "56.00",
        "worst": "52.00",
        "train s": "11.0",
        "failed": "2",
        "unfinished": "0",
    }
    short = group_rows(compared([LOW, HIGH], "test/acc"), is_short=True)
    assert short.rows[0] == ["lr=2", "3", "61.00", "54.00 ± 4.97", "2.00", "52.00 – 56.00", "11.0", "2 failed"]
    assert "other" not in group_rows(compared([LOW], "test/acc"), is_short=True).columns


def test_test_time_augmentation_has_a_column():
    comparison = compared([group("a", [0.5, 0.6], **{"test/acc_tta": [0.7, 0.8]}), group("b", [0.4])], "test/acc")
    assert comparison.metrics == ["test/acc", "test/acc_tta"]
    rows = group_rows(comparison)
    assert [row[list(rows.columns).index("test/acc_tta %")] for row in rows.rows] == ["75.00", "–"]


def read(content):
    return list(csv.DictReader(io.StringIO(content.decode(), newline="")))


def test_tables_as_csv_have_the_figures_in_full():
    comparison = compared([LOW, HIGH], "test/acc")
    best = comparison.rows[0]
    [first, _] = read(groups_csv(comparison))
    assert (first["group"], first["test/acc n"], first["failed"]) == ("lr=2", "3", "2")
    assert float(first["test/acc low"]) == best.summaries["test/acc"].low
    [pair] = read(pairs_csv(comparison))
    assert (pair["first"], pair["second"], pair["n"]) == ("lr=2", "lr=1", "3")
    assert (float(pair["p"]), float(pair["first minus second"])) == (
        comparison.pairs[0].test.p,
        comparison.pairs[0].test.difference.mean,
    )
    runs = read(runs_csv(comparison))
    assert [(run["seed"], run["test/acc"], run["lr"], run["status"], run["counted"]) for run in runs[2:5]] == [
        ("2", "0.56", "2", "finished", "1"),
        ("", "", "2", "failed", "0"),
        ("", "", "2", "failed", "0"),
    ]
    assert read(groups_csv(compared([group("a", [0.5])], "test/acc")))[0]["test/acc sd"] == ""


HOSTILE = "name=<img src=x onerror=alert(1)>|`*_\n=1+1\x1b[31m"


def test_names_of_anybody_are_text_everywhere():
    hostile = group(HOSTILE, [0.5, 0.6], [0.5, 0.6])
    comparison = compared([hostile, LOW], "test/acc")
    context = Context(f"Comparison of {HOSTILE}", [HOSTILE], [HOSTILE], HOSTILE)
    for text in (page(comparison, context), markdown(comparison, context)):
        assert "<img" not in text
        assert "\x1b" not in text
    table = [line for line in markdown(comparison, context).splitlines() if line.startswith("|")]
    assert {len(re.findall(r"(?<!\\)\|", line)) for line in table[:4]} == {10}  # no name begins a cell
    formula = read(groups_csv(compared([group("=1+1", [0.5])], "test/acc")))
    assert formula[0]["group"] == "'=1+1"


def test_markdown_is_escaped_as_it_is_read():
    assert r"data.val\_size=5000" in markdown(compared([LOW], "test/acc"), CONTEXT)


@pytest.mark.parametrize("groups", [[LOW, HIGH], [group("a", [0.5])], [group("a", failed=1)]])
def test_every_comparison_has_a_page(groups):
    content = page(compared(groups, "test/acc"), CONTEXT)
    assert conclusion(compared(groups, "test/acc")) in content
    assert ("<svg" in content) is bool(groups[0].counted)


def test_a_page_of_many_runs_stays_small():
    many = [group(f"optimizer.lr={i}", [0.5 + i / 1e4] * 20) for i in range(200)]
    content = page(compared(many, "test/acc"), CONTEXT)
    assert "The first 1,000 of 4,000 rows; runs.csv has all." in content
    assert "170 more groups are in the table." in content
    assert "rows; compare.csv has all." not in content
    assert len(content) < 1_000_000


def test_what_is_left_out_of_a_table_is_said_below_it():
    many = compared([group(f"optimizer.lr={i}", [0.5 + i / 1e4, 0.6]) for i in range(1_100)], "test/acc")
    for content in (page(many, CONTEXT), markdown(many, CONTEXT)):
        assert "The first 1,000 of 1,100 rows; compare.csv has all." in content
        assert "The first 1,000 of 1,099 rows; pairs.csv has all." in content
