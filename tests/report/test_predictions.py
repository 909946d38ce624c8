"""predictions.csv and predictions.json."""

import csv
import json
import os

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from texts import EXAMPLES, NAMES

from cifar_lightning.analysis.label_errors import label_errors
from cifar_lightning.errors import RunError
from cifar_lightning.metrics import evaluate
from cifar_lightning.predictor import Prediction
from cifar_lightning.report.predictions import cell, write_predictions, writing

FORMULAS = tuple("=+-@\t\r\n＝＋－＠")


def rows_of(path):
    with path.open(newline="", encoding="utf-8") as file:
        return list(csv.reader(file))


def prediction(probs, classes):
    best = torch.tensor(probs).topk(2)
    top = tuple((classes[i], value) for value, i in zip(best.values.tolist(), best.indices.tolist(), strict=True))
    return Prediction(label=top[0][0], prob=top[0][1], top=top, probs=torch.tensor(probs))


def test_predictions_file_has_a_line_per_image(tmp_path):
    logits = (0.25 + 0.25 * torch.eye(3)[[0, 1, 0, 2]]).log()
    targets = torch.tensor([0, 1, 1, 0])
    write_predictions(tmp_path / "p.csv", evaluate(logits, targets), targets, ["cat", "big, dog", "ship"])
    with (tmp_path / "p.csv").open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [row["index"] for row in rows] == ["0", "1", "2", "3"]
    assert [row["target"] for row in rows] == ["cat", "big, dog", "big, dog", "cat"]
    assert [row["pred"] for row in rows] == ["cat", "big, dog", "cat", "ship"]
    assert [row["correct"] for row in rows] == ["1", "1", "0", "0"]
    assert {row["confidence"] for row in rows} == {"0.500000"}


def test_an_evaluation_with_augmentation_of_files_has_more_columns(tmp_path):
    targets = torch.tensor([0, 1])
    plain, augmented = torch.tensor([[1.0, 0], [1, 0]]), torch.tensor([[1.0, 0], [0, 1]])
    path = tmp_path / "p.csv"
    write_predictions(
        path,
        evaluate(plain, targets),
        targets,
        ["cat", "dog"],
        augmented=evaluate(augmented, targets),
        files=["test/cat/0.png", "=test/dog/1.png"],
    )
    assert rows_of(path) == [
        ["index", "target", "pred", "confidence", "correct", "pred_tta", "confidence_tta", "path"],
        ["0", "cat", "cat", "0.731059", "1", "cat", "0.731059", "test/cat/0.png"],
        ["1", "dog", "cat", "0.731059", "0", "dog", "0.731059", "'=test/dog/1.png"],
    ]


def test_labels_that_may_be_wrong_have_another_class_beside_them(tmp_path):
    probs = torch.tensor([[0.9, 0.1], [0.8, 0.2], [0.1, 0.9], [0.2, 0.8]])
    targets = torch.tensor([0, 1, 1, 1])
    errors = label_errors(probs, targets)
    write_predictions(tmp_path / "p.csv", evaluate(probs.log(), targets), targets, ["=cat", "dog"], errors=errors)
    rows = rows_of(tmp_path / "p.csv")
    assert rows[0] == ["index", "target", "pred", "confidence", "correct", "label_quality", "suspected_label"]
    assert [row[5] for row in rows[1:]] == ["0.900000", "0.200000", "0.900000", "0.800000"]
    assert [row[6] for row in rows[1:]] == ["", "", "", ""]  # 0.8 is less than the 0.9 of the images that are cats
    errors = label_errors(probs, torch.tensor([0, 1, 1, 0]))
    write_predictions(tmp_path / "p.csv", evaluate(probs.log(), targets), targets, ["=cat", "dog"], errors=errors)
    assert [row[6] for row in rows_of(tmp_path / "p.csv")[1:]] == ["", "'=cat", "", "dog"]


def test_predictions_are_written_one_after_the_other(tmp_path):
    classes = ("cat", "=dog", "ship")
    with writing(tmp_path, {"name": "x"}, classes=classes, topk=2, save_probs=True) as files:
        files.add("a.png", prediction([0.5, 0.25, 0.125], classes))
        files.add_problem("b.txt", "not an image, by its extension")
        assert not (tmp_path / "predictions.csv").exists()
    assert rows_of(tmp_path / "predictions.csv") == [
        ["file", "class", "probability", "class_2", "probability_2", "error", "p:cat", "p:=dog", "p:ship"],
        ["a.png", "cat", "0.500000", "'=dog", "0.250000", "", "0.500000", "0.250000", "0.125000"],
        ["b.txt", "", "", "", "", "not an image, by its extension", "", "", ""],
    ]
    assert json.loads((tmp_path / "predictions.json").read_text()) == {
        "name": "x",
        "predictions": [
            {
                "file": "a.png",
                "class": "cat",
                "probability": 0.5,
                "top": [{"class": "cat", "probability": 0.5}, {"class": "=dog", "probability": 0.25}],
                "probabilities": {"cat": 0.5, "=dog": 0.25, "ship": 0.125},
            },
            {"file": "b.txt", "error": "not an image, by its extension"},
        ],
    }
    assert sorted(os.listdir(tmp_path)) == ["predictions.csv", "predictions.json"]


def test_predictions_that_are_interrupted_leave_the_ones_before(tmp_path):
    (tmp_path / "predictions.csv").write_text("before")

    def interrupted() -> None:
        with writing(tmp_path, {"name": "x"}, classes=("a", "b"), topk=1, save_probs=False) as files:
            files.add_problem("b.txt", "empty")
            raise KeyboardInterrupt("here")

    with pytest.raises(KeyboardInterrupt, match="here"):
        interrupted()
    assert os.listdir(tmp_path) == ["predictions.csv"]
    assert (tmp_path / "predictions.csv").read_text() == "before"


def test_predictions_that_cannot_be_written(tmp_path):
    (tmp_path / "file").write_text("")
    with (
        pytest.raises(RunError, match=r"predictions\.csv cannot be written: .*(Not a directory|File exists)"),
        writing(tmp_path / "file", {"name": "x"}, classes=("a", "b"), topk=1, save_probs=False),
    ):
        pass


@EXAMPLES
@given(names=st.lists(NAMES, min_size=2, max_size=4))
def test_any_names_of_files_and_classes(tmp_path, names):
    with writing(tmp_path, {"classes": names}, classes=names, topk=2, save_probs=True) as files:
        for name in names:
            files.add(name, prediction([0.5, 0.25, *[0.0] * (len(names) - 2)], names))
            files.add_problem(name, name)
    rows = rows_of(tmp_path / "predictions.csv")
    assert len(rows) == 1 + 2 * len(names)
    assert {len(row) for row in rows} == {6 + len(names)}
    assert not [text for row in rows for text in row if text.startswith(FORMULAS)]
    found = json.loads((tmp_path / "predictions.json").read_bytes())
    assert [entry["file"] for entry in found["predictions"]] == [name for name in names for _ in range(2)]


@EXAMPLES
@given(classes=st.lists(NAMES, min_size=2, max_size=5))
def test_predictions_are_a_row_per_image_without_formulas(tmp_path, classes):
    targets = torch.arange(6) % len(classes)
    logits = torch.nn.functional.one_hot(targets.roll(1), len(classes)).float()
    write_predictions(tmp_path / "predictions.csv", evaluate(logits, targets), targets, classes)
    content = (tmp_path / "predictions.csv").read_bytes().decode("utf-8")
    assert content.count("\r\n") == len(content.splitlines()) == 7
    rows = rows_of(tmp_path / "predictions.csv")
    assert rows[0] == ["index", "target", "pred", "confidence", "correct"]
    assert [row[1] for row in rows[1:]] == [cell(classes[target]) for target in targets.tolist()]
    assert [row[0] for row in rows[1:]] == list("012345")
    assert not [text for row in rows for text in row if text.startswith(FORMULAS)]


@pytest.mark.parametrize("name", ["cat", "=1+1", "-1", "'til", "''", "@x", "a=b", "", "猫"])
def test_printable_names_are_found_again(name):
    written = cell(name)
    assert (written[1:] if written.startswith("'") else written) == name


def test_names_that_cannot_be_printed_become_escapes():
    assert cell("\x1b[31m\n") == r"\x1b[31m\n"
