"""Tables on the console."""

import logging
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st
from texts import EXAMPLES, NAMES

from cifar_lightning.report.tables import class_rows, duration, log_drops, log_table, log_values, shown


def test_a_table_has_a_title_and_a_line_for_each_value(caplog):
    with caplog.at_level(logging.INFO):
        log_table("two values", [("acc", "50.00 %"), ("a longer name", "1")])
    expected = [
        "two values",
        "┌───────────────┬─────────┐",
        "│ acc           │ 50.00 % │",
        "│ a longer name │       1 │",
        "└───────────────┴─────────┘",
    ]
    assert caplog.messages == ["\n".join(expected)]


def test_values_end_at_one_place_before_their_intervals(caplog):
    with caplog.at_level(logging.INFO):
        log_values("values", [("acc", "9.00 %", "(8.00 to 9.50)"), ("loss", "2.0000", ""), ("cat", "100.00 %", "")])
    expected = [
        "values",
        "┌──────┬─────────────────────────┐",
        "│ acc  │   9.00 % (8.00 to 9.50) │",
        "│ loss │   2.0000                │",
        "│ cat  │ 100.00 %                │",
        "└──────┴─────────────────────────┘",
    ]
    assert caplog.messages == ["\n".join(expected)]


@pytest.mark.parametrize(
    ("name", "value", "expected"),
    [
        ("test/acc", 0.94061, "94.06 %"),
        ("test/acc_tta", 1.0, "100.00 %"),
        ("test/loss", 0.25, "0.2500"),
        ("images_per_second", 12345.6, "12,346"),
    ],
)
def test_accuracies_are_shown_in_percent(name, value, expected):
    assert shown(name, value) == expected


@pytest.mark.parametrize(
    ("seconds", "expected"),
    [
        (0.04, "0.0 s"),
        (59.94, "59.9 s"),
        (59.96, "1 min 00 s"),
        (185, "3 min 05 s"),
        (3599.6, "1 h 00 min"),
        (7800, "2 h 10 min"),
        (100 * 3600, "4 d 4 h"),
    ],
)
def test_a_duration_has_at_most_two_units(seconds, expected):
    assert duration(seconds) == expected


@pytest.mark.parametrize("name", ["cat [old]", "[bold]x[/bold]", "[/]", ":dog:", "a :cat: b", "\\[x]"])
def test_names_are_no_markup_and_no_emoji(caplog, name):
    with caplog.at_level(logging.INFO):
        log_table("title", [(name, "1")])
    assert f"│ {name} │ 1 │" in caplog.messages[0]


@EXAMPLES
@given(names=st.lists(NAMES, max_size=5))
def test_each_row_of_a_table_is_lines_of_its_width(caplog, names):
    caplog.clear()
    with caplog.at_level(logging.INFO):
        log_table("title", [(name, "1") for name in names])
    title, *lines = caplog.messages[0].split("\n")
    assert title == "title"
    assert all(line.isprintable() for line in lines)
    assert len(lines) == len(names) + 2


def test_a_table_is_text_whatever_the_environment_says_of_colours(caplog, monkeypatch):
    monkeypatch.setenv("FORCE_COLOR", "1")
    monkeypatch.setattr("rich.console._is_jupyter", lambda: True)
    with caplog.at_level(logging.INFO):
        log_table("title", [("a", "1")])
    assert caplog.messages == ["title\n┌───┬───┐\n│ a │ 1 │\n└───┴───┘"]


def test_of_many_classes_the_best_and_the_worst_are_shown():
    class_acc = {f"class {i}": i / 999 for i in range(1000)}
    rows = class_rows({**class_acc, "empty": math.nan})
    assert len(rows) == 21
    assert rows[0] == ("class 999", "100.00 %")
    assert rows[10] == ("981 more classes", "in metrics.json")
    assert rows[-1] == ("class 0", "0.00 %")


def test_of_few_classes_all_are_shown_in_their_order():
    assert class_rows({"b": 0.5, "a": 0.25}) == [("b", "50.00 %"), ("a", "25.00 %")]


def test_drops_are_points_with_an_interval_and_each_note_once(caplog):
    row = {"source": "C", "num_images": 10_000, "acc": 0.8123, "loss": 0.75, "note": "of 5"}
    row |= {"drop": 0.1201, "drop_low": 0.11, "drop_high": 0.13, "p": 1e-9}
    alone = row | {"name": "new\x1b", "source": "new\x1b", "p": None, "drop": -0.01}
    few = row | {"name": "few", "drop": math.nan, "drop_low": math.nan, "drop_high": math.nan, "p": math.nan}
    with caplog.at_level(logging.INFO):
        log_drops([row | {"name": "C fog"}, row | {"name": "C snow", "p": 0.25}, alone, few], "val")
    table, *notes = caplog.messages
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in table.split("\n") if "│" in line]
    assert table.startswith("Other test sets: the drop is from the accuracy on the val images, in points\n")
    assert lines == [
        ["test set", "images", "accuracy", "drop", "95 % interval", "p", "loss"],
        ["C fog", "10,000", "81.23 %", "12.01", "11.00 to 13.00", "<0.0001", "0.7500"],
        ["C snow", "10,000", "81.23 %", "12.01", "11.00 to 13.00", "0.2500", "0.7500"],
        [r"new\x1b", "10,000", "81.23 %", "-1.00", "11.00 to 13.00", "", "0.7500"],
        ["few", "10,000", "81.23 %", "–", "–", "–", "0.7500"],
    ]
    assert notes == ["note      C: of 5", r"note      new\x1b: of 5"]
