"""Published figures are those of their records."""

import json
from statistics import mean, stdev

import pytest
from conftest import ROOT

RECORD = json.loads((ROOT / "benchmarks" / "results" / "finetune.json").read_text())["contenders"]


@pytest.mark.parametrize("contender", RECORD)
def test_figures_of_fine_tuning(contender):
    accuracies = [100 * run["test/acc"] for run in RECORD[contender]["runs"]]
    assert len(accuracies) == 5
    assert f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f} %" in (ROOT / "RESULTS.md").read_text()


def test_the_experiment_names_its_figure():
    accuracies = [100 * run["test/acc"] for run in RECORD["fine-tuned"]["runs"]]
    head = (ROOT / "conf" / "experiment" / "finetune.yaml").read_text().partition("defaults:")[0]
    assert f"{mean(accuracies):.2f} ± {stdev(accuracies):.2f} % (n = {len(accuracies)})" in head
