"""The page of a search."""

import pytest

pytest.importorskip("optuna")

from trying import SPACE

from cifar_lightning.search.charts import parallel
from cifar_lightning.search.page import page
from cifar_lightning.search.results import Results, Trial
from cifar_lightning.search.space import read_space


def found(accs, importances=None):
    trials = [
        Trial(i, "complete", acc, 3, 1.0, "", {"data.batch_size": "16", "optimizer.lr": "0.01"})
        for i, acc in enumerate(accs)
    ]
    return Results(trials, trials[0], importances or {}, read_space({}, SPACE), "python train.py")


@pytest.mark.parametrize(
    ("accs", "importances", "said"),
    [
        ([0.5, 0.4, 0.3], {}, "The importance of keys is shown from 4 complete trials on: here are too few."),
        ([0.5, 0.5, 0.5, 0.5], {}, "The importance of keys cannot be told from these trials, such as where all have"),
        ([0.5, 0.4, 0.3, 0.2], {"optimizer.lr": 0.9}, "Importance is PED-ANOVA: how the values of the better trials"),
    ],
)
def test_the_page_tells_of_the_importance_that_it_shows(accs, importances, said):
    text = page(found(accs, importances), "a search", "python search.py")
    assert text.count("mportance is PED") + text.count("mportance of keys") == 1
    assert said in text
    assert ("importance of each key" in text) == bool(importances)


def test_no_line_strikes_through_the_label_of_a_value():
    [axis] = parallel(found([0.5, 0.4])).axes
    labels = {text.get_text(): text for text in axis.texts}
    assert labels["16"].get_bbox_patch().get_facecolor()[3] == 1
    assert labels["16"].get_zorder() > max(line.get_zorder() for line in axis.lines)
