"""compare.py over checkpoints: the same images, McNemar's test, pictures of what they disagree about."""

import csv
import json
import re
import shutil
from pathlib import Path

import pytest
import torch
from browsing import browser, requested, visit
from conftest import CLASSES, FAST, SMALL, TINY, save_checkpoint
from scipy.stats import binomtest

from cifar_lightning.commands.compare import compare
from cifar_lightning.commands.train import train
from cifar_lightning.config import schema
from cifar_lightning.report.disagreement import Contender, disagreement, disagreements_csv, duel_rows, verdict
from cifar_lightning.report.disagreement_page import disagreement_page

__all__ = ["browser"]


@pytest.fixture(scope="module")
def runs(tmp_path_factory, tiny_root):
    """Two trained runs on the tiny data set. Nothing may be written into them."""
    folder = tmp_path_factory.mktemp("runs")
    for seed in range(2):
        fixed = (f"output_dir={folder / str(seed)}", "trainer.accelerator=cpu", f"data.root={tiny_root}", TINY)
        train(schema.compose(*fixed, *FAST, *SMALL, f"seed={seed}", "optimizer.lr=0.05", "data.val_size=20"))
    return folder


def ckpts(runs):
    return [str(runs / str(seed) / "checkpoints" / "last.ckpt") for seed in range(2)]


def typed(paths):
    return "ckpt=[" + ",".join(map(str, paths)) + "]"


def predictions(command, ckpt, *more):
    assert command("evaluate.py", f"ckpt={ckpt}", "output_dir=evaluation", TINY, *more).code == 0
    with open("evaluation/predictions.csv") as file:
        rows = list(csv.DictReader(file))
    shutil.rmtree("evaluation")
    return rows


@pytest.mark.parametrize("more", [(), ("split=val",), ("tta=1",)])
def test_checkpoints_are_compared_on_the_same_images(command, runs, more):
    paths = ckpts(runs)
    outcome = command("compare.py", typed(paths), TINY, "output_dir=out", *more)
    assert (outcome.code, outcome.err) == (0, "")
    column = "pred_tta" if more == ("tta=1",) else "pred"
    told = [predictions(command, path, *more) for path in paths]
    right = [[row[column] == row["target"] for row in rows] for rows in told]
    lines = [[cell.strip() for cell in line.split("│")[1:-1]] for line in outcome.out.splitlines() if "│" in line]
    of_ckpt = {line[0]: line for line in lines[1:3]}
    assert {name: line[3] for name, line in of_ckpt.items()} == {str(i): str(sum(right[i])) for i in range(2)}
    first, second = (int(name) for name in lines[4][:2])
    only_first = sum(a and not b for a, b in zip(right[first], right[second], strict=True))
    only_second = sum(b and not a for a, b in zip(right[first], right[second], strict=True))
    p = binomtest(only_first, only_first + only_second).pvalue if only_first + only_second else 1.0
    assert lines[4][3] == ("< 0.001" if p < 0.001 else f"{p:.3f}" if p < 0.1 else f"{p:.2f}")
    assert lines[4][4] == f"{only_first} : {only_second}"
    with open("out/disagreements.csv") as file:
        rows = list(csv.DictReader(file))
    differ = [str(i) for i, (a, b) in enumerate(zip(*told, strict=True)) if a[column] != b[column]]
    assert [row["index"] for row in rows] == differ
    for row in rows:
        assert row["target"] == told[0][int(row["index"])]["target"]
        for i in range(2):
            assert row[f"pred {i}"] == told[i][int(row["index"])][column]


def test_exported_files_are_compared(command, exported_run, tiny_root):
    paths = [exported_run / "checkpoints" / "last.ckpt", exported_run / "export" / "last.onnx"]
    precise = ("trainer.precision=32-true", "output_dir=out")
    outcome = command("compare.py", typed(paths), f"data.root={tiny_root}", TINY, *precise)
    assert outcome.code == 0, outcome.err
    assert re.search(r"Checkpoints .* and .* have .* of 20 images right each \(p = 1\.00\)\.", outcome.out)


@pytest.mark.parametrize(
    ("paths", "more", "message"),
    [
        (["{0}"], (), "ckpt must be a list of two or more checkpoints, as in ckpt=[a.ckpt,b.ckpt], got "),
        (["{0}", "{0}"], (), "ckpt={0} is the same file as {0}: give each checkpoint once"),
        (["{0}", "nowhere.ckpt"], (), "there is no file nowhere.ckpt"),
        (["nowhere.ckpt", "{0}"], (), "there is no file nowhere.ckpt"),
        (["{0}", "other.ckpt"], (), "ckpt=other.ckpt has the classes cat, dog, {0} has airplane, automobile, "),
        (["{0}", "unseen.ckpt"], ("split=val",), "ckpt=unseen.ckpt: split=val: these are not the training images"),
        (["{0}", "{1}"], ("split=train",), "split must be val or test, got train"),
        (["{0}", "{1}"], ("tta=7",), "tta must be 0 (none), 1 (mirror images) or 2"),
        (["{0}", "{1}"], ("runs=x",), "runs=FOLDER compares runs, ckpt=[a.ckpt,b.ckpt] checkpoints on the same images"),
        (["{0}", "{1}"], ("baseline=a",), "baseline=a has no part in a comparison of checkpoints: it goes with runs="),
    ],
)
def test_what_is_refused(command, runs, paths, more, message):
    save_checkpoint(Path("other.ckpt"), name="tutorial", classes=["cat", "dog"])
    save_checkpoint(Path("unseen.ckpt"), name="tutorial", classes=CLASSES)
    both = ckpts(runs)
    outcome = command("compare.py", typed([path.format(*both) for path in paths]), TINY, "output_dir=out", *more)
    assert outcome.refusal.startswith(message.format(*both))


def test_keys_of_checkpoints_have_no_part_in_a_comparison_of_runs(command):
    for key in ("split=val", "tta=1", "trainer.accelerator=cpu", "data.root=x", "data=folder"):
        refusal = command("compare.py", "runs=x", key).refusal
        assert refusal == f"{key} has no part in a comparison of runs: it goes with ckpt="


def test_from_python(runs, tmp_path, tiny_root):
    cfg = schema.compose(
        typed(ckpts(runs)),
        f"output_dir={tmp_path / 'out'}",
        f"data.root={tiny_root}",
        TINY,
        "trainer.accelerator=cpu",
        config_name="compare",
    )
    found = compare(cfg)
    accuracies = [json.loads((runs / str(seed) / "metrics.json").read_text())["test/acc"] for seed in range(2)]
    found_accuracies = [found.right(number).double().mean().item() for number in range(2)]
    assert found_accuracies == pytest.approx(sorted(accuracies, reverse=True))
    assert (tmp_path / "out" / "compare.html").exists()


def contender(name, preds):
    return Contender(name, f"{name}.ckpt", torch.tensor(preds), torch.linspace(0.5, 0.9, len(preds)))


TARGETS = torch.tensor([0, 0, 0, 0, 1, 1, 1, 1, 1, 1])


def test_three_checkpoints_by_hand():
    found = disagreement(
        [
            contender("worst", [1, 1, 1, 1, 0, 0, 0, 0, 0, 1]),
            contender("best", [0, 0, 0, 0, 1, 1, 1, 1, 1, 0]),
            contender("good", [0, 0, 0, 1, 1, 1, 1, 1, 0, 0]),
        ],
        TARGETS,
    )
    assert [one.name for one in found.contenders] == ["best", "good", "worst"]
    numbers = [(duel.test.only_second, duel.test.only_first, duel.both_wrong) for duel in found.duels]
    assert numbers == [(2, 0, 1), (9, 1, 0), (7, 1, 2)]
    raw = [0.5, 2 * 11 / 2**10, 2 * 9 / 2**8]  # of 2, 10 and 8 coins
    assert [duel.test.p for duel in found.duels] == pytest.approx(raw)
    assert [duel.p for duel in found.duels] == pytest.approx([0.5, 3 * raw[1], 2 * raw[2]])
    assert found.differ.tolist() == [True] * 8 + [True, True]
    assert verdict(found).startswith(
        "Checkpoint best has 90.00 % of 10 images right, checkpoint good less by 20.00 points ("
    )
    assert verdict(found).endswith("McNemar's exact p = 0.50 after Holm): no difference is shown.")
    assert [name for name in duel_rows(found).columns if name.startswith("p ")] == ["p (Holm)"]


def test_checkpoints_that_are_level():
    found = disagreement([contender("a", [0] * 10), contender("b", [0] * 10)], TARGETS)
    assert verdict(found) == "Checkpoints a and b have 40.00 % of 10 images right each (p = 1.00)."
    for is_short in (True, False):  # a single p-value is not corrected
        shown = duel_rows(found, is_short=is_short)
        assert [name for name in shown.columns if name.startswith("p") and "point" not in name] == ["p"]
        assert len(shown.columns) == len(shown.rows[0])
    assert len(disagreements_csv(found, "xy", None).splitlines()) == 1


HOSTILE = "<img src=x onerror=alert(1)>\x1b\u202e"


@pytest.mark.parametrize("width", [1280, 390])
def test_the_page_in_a_browser(browser, tmp_path, width):
    names = (f"a{HOSTILE}" * 5, "b")
    found = disagreement([contender(names[0], [0] * 10), contender(names[1], [1] * 10)], TARGETS)
    images = torch.randint(256, (10, 3, 32, 32), dtype=torch.uint8)
    content = disagreement_page(
        found,
        title=HOSTILE,
        about=HOSTILE,
        classes=[HOSTILE, "dog"],
        files=[f"{HOSTILE}/{i}.png" for i in range(10)],
        gather=lambda chosen: images[chosen],
        command=HOSTILE,
    )
    path = tmp_path / "compare.html"
    path.write_text(content)
    visit(browser, f"file://{path}", width)
    sizes = browser.execute_script("const e = document.documentElement; return [e.scrollWidth, e.clientWidth]")
    assert sizes[0] == sizes[1] <= width
    pictures = browser.find_elements("css selector", ".pictures img")
    assert len(pictures) == 10
    assert all(picture.get_property("naturalWidth") == 32 for picture in pictures)
    assert "Checkpoint b has 60.00 %" in browser.find_element("css selector", ".conclusion").text
    assert [url for url in requested(browser) if not url.startswith("data:")] == [f"file://{path}"]
    assert browser.get_log("browser") == []
    lines = disagreements_csv(found, [HOSTILE, "=1+1"], [HOSTILE] * 10).decode().splitlines()
    assert len(lines) == 11
    assert "\x1b" not in "".join(lines)
    assert re.search("'=1\\+1", lines[1])
