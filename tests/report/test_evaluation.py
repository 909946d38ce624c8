"""The figures of metrics.json, against scikit-learn, scipy and by hand."""

import json
import math

import numpy as np
import pytest
import torch
from evaluations import make_result
from scipy.stats import norm

from cifar_lightning.metrics import evaluate
from cifar_lightning.report.evaluation import Evaluated, details, figure_rows, figures

sklearn = pytest.importorskip("sklearn.metrics")

NAMES = [f"class {i}" for i in range(12)]


def test_the_figures_are_those_of_scikit_learn():
    result = make_result(NAMES)
    probs, targets, preds = result.plain.logits.double().softmax(1), result.targets, result.plain.preds
    expected = {
        "test/acc": sklearn.accuracy_score(targets, preds),
        "test/balanced_acc": sklearn.balanced_accuracy_score(targets, preds),
        "test/top5_acc": sklearn.top_k_accuracy_score(targets, probs, k=5, labels=range(12)),
        "test/loss": sklearn.log_loss(targets, probs, labels=range(12)),
        "test/brier": sklearn.brier_score_loss(targets, probs, labels=range(12), scale_by_half=False),
    }
    found = figures(result)
    assert {name: found[name] for name in expected} == pytest.approx(expected, rel=1e-6)
    assert found["test/ece"] == result.plain.ece
    assert set(found) == {*expected, "test/ece", "test/acc_low", "test/acc_high"}


def test_the_interval_is_wilsons():
    result = make_result(NAMES[:3], num_images=40)
    acc, n, z = result.plain.acc, 40, norm.ppf(0.975)
    centre, half = acc + z * z / (2 * n), z * math.sqrt(acc * (1 - acc) / n + z * z / (4 * n * n))
    expected = [(centre + sign * half) / (1 + z * z / n) for sign in (-1, 1)]
    found = figures(result)
    assert [found["test/acc_low"], found["test/acc_high"]] == pytest.approx(expected, rel=1e-9)


def test_a_temperature_adds_figures_and_leaves_the_plain_ones():
    plain, calibrated = make_result(NAMES, tta=True), make_result(NAMES, tta=True, temperature=0.6)
    before, after = figures(plain), figures(calibrated)
    assert {name: after[name] for name in before} == before
    added = {f"test/{name}_calibrated{suffix}" for name in ("loss", "ece", "brier") for suffix in ("", "_tta")}
    assert set(after) - set(before) == added
    for suffix, evaluation in (("", plain.plain), ("_tta", plain.augmented)):
        expected = evaluate(evaluation.logits / 0.6, plain.targets)
        for name in ("loss", "ece", "brier"):
            assert after[f"test/{name}_calibrated{suffix}"] == getattr(expected, name)
    assert torch.equal(calibrated.shown.confidence, evaluate(plain.plain.logits / 0.6, plain.targets).confidence)
    assert plain.shown is plain.plain
    assert plain.shown_augmented is plain.augmented
    assert calibrated.shown_augmented is calibrated.calibrated_augmented


def test_the_table_shows_an_accuracy_with_its_interval():
    result = make_result(NAMES[:3], num_images=40, tta=True)
    rows = {name: (value, interval) for name, value, interval in figure_rows(result)}
    found = figures(result)
    assert set(rows) == {name for name in found if not name.startswith(("test/acc_low", "test/acc_high"))}
    for suffix in ("", "_tta"):
        acc, low, high = (100 * found[f"test/acc{end}{suffix}"] for end in ("", "_low", "_high"))
        assert rows[f"test/acc{suffix}"] == (f"{acc:.2f} %", f"({low:.2f} to {high:.2f})")
    assert rows["test/loss"] == (f"{found['test/loss']:.4f}", "")


def test_the_details_have_what_tables_and_diagrams_show():
    result = make_result(NAMES[:3], temperature=2.0)
    found = json.loads(json.dumps(details(result)))
    assert found["temperature"] == 2.0
    assert found["test/class_acc"] == dict(zip(NAMES[:3], result.plain.class_acc, strict=True))
    assert found["confusion"] == sklearn.confusion_matrix(result.targets, result.plain.preds).tolist()
    report = sklearn.classification_report(
        result.targets, result.plain.preds, target_names=NAMES[:3], output_dict=True, zero_division=np.nan
    )
    for name, row in found["per_class"].items():
        expected = [report[name][key] for key in ("support", "recall", "precision", "f1-score")]
        assert [row[key] for key in ("num_images", "recall", "precision", "f1")] == pytest.approx(expected)
    most = found["most_confused"][0]
    matrix = np.array(found["confusion"])
    np.fill_diagonal(matrix, 0)
    assert most["num_images"] == matrix.max() == matrix[NAMES.index(most["target"]), NAMES.index(most["pred"])]
    for key, evaluation in (("reliability", result.plain), ("reliability_calibrated", result.calibrated)):
        gaps = [row["num_images"] * abs(row["acc"] - row["confidence"]) for row in found[key] if row["num_images"]]
        assert sum(gaps) / 200 == pytest.approx(evaluation.ece, abs=1e-6)
        assert [row["low"] for row in found[key][1:]] == [row["high"] for row in found[key][:-1]]
    assert found["num_suspected_labels"] == len(result.label_errors.index) > 10
    assert "confusion" not in details(make_result([f"{i}" for i in range(21)]))


def test_coverage_by_hand():
    confidence = torch.tensor([0.95, 0.9, 0.8, 0.7, 0.6])
    logits = torch.stack([confidence, 1 - confidence], dim=1).log()
    result = Evaluated(
        split="val", classes=["a", "b"], targets=(t := torch.tensor([0, 0, 1, 0, 1])), plain=evaluate(logits, t)
    )
    rows = details(result)["coverage"]
    assert [row["acc"] for row in rows] == [0.9, 0.95, 0.99]
    assert {(row["num_kept"], round(row["left_out"], 9), round(row["least_confidence"], 6)) for row in rows} == {
        (2, 0.6, 0.9)
    }
    wrong = Evaluated(split="val", classes=["a", "b"], targets=1 - t * 0, plain=evaluate(logits, 1 - t * 0))
    assert details(wrong)["coverage"][0] == {"acc": 0.9, "num_kept": 0, "left_out": 1.0, "least_confidence": None}


def test_suspected_labels_are_found_with_calibrated_probabilities():
    result = make_result(NAMES, num_images=2000, temperature=0.4)
    find_label_issues = pytest.importorskip("cleanlab.filter").find_label_issues
    probs = (result.plain.logits / 0.4).double().softmax(1).numpy()
    expected = find_label_issues(
        result.targets.numpy(),
        probs,
        filter_by="confident_learning",
        return_indices_ranked_by="normalized_margin",
        n_jobs=1,
    )
    assert result.label_errors.index.tolist() == expected.tolist()
