"""Tables on the console."""

import logging

import pytest

from cifar_lightning.report.tables import log_table, shown


def test_a_table_has_a_title_and_a_line_for_each_value(caplog):
    with caplog.at_level(logging.INFO):
        log_table("two values", {"acc": "50.00 %", "a longer name": "1"})
    expected = [
        "two values",
        "┌───────────────┬─────────┐",
        "│ acc           │ 50.00 % │",
        "│ a longer name │       1 │",
        "└───────────────┴─────────┘",
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
