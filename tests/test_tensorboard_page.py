"""TensorBoard in a browser, over a small sweep: its runs, scalars, images and HPARAMS are there, with their values."""

import json
import re
import subprocess
import sys
import time
from urllib.request import urlopen

import pytest
from browsing import requested, visit
from conftest import TINY

from cifar_lightning.commands.train import train
from cifar_lightning.config import schema

SWEEP = {
    "sweep/0": ("seed=0", "data.val_size=20", "tta=1"),
    "sweep/1": ("seed=1", "optimizer.lr=0.02", "data.val_size=20", "callbacks=none"),
    "sweep/2": ("seed=2", "optimizer=adamw", "callbacks=none"),
}
"""The last one has other hyper-parameters and no validation images."""
FIRST_COLUMNS = {"hp/test_acc": "test/acc", "hp/test_acc_tta": "test/acc_tta", "hp/val_acc": "val/acc"}

EACH = """
const found = [], visit = (node) => {
  if (node.localName === arguments[0] && node.getClientRects().length) found.push(node);
  for (const inner of [...(node.shadowRoot?.children ?? []), ...node.children]) visit(inner);
};
visit(document.body);
return found.map((node) => %s);
"""
"""Something of each visible element of a kind, also of those in the shadow of others."""
TEXT = EACH % "node.innerText.trim()"
IMAGE = EACH % "[node.run, node.tag, node.shadowRoot.querySelector('img')?.naturalWidth ?? 0]"


@pytest.fixture(scope="module")
def sweep(tmp_path_factory, tiny_root):
    """The folder of three runs, and their metrics by name."""
    logs = tmp_path_factory.mktemp("logs")
    fixed = (f"data.root={tiny_root}", TINY, "trainer.accelerator=cpu", "trainer.enable_progress_bar=false")
    few = ("data.batch_size=10", "trainer.max_epochs=2", "trainer.log_every_n_steps=2")
    runs = {name: (f"output_dir={logs / name}", *fixed, *few, *SWEEP[name]) for name in SWEEP}
    return logs, {name: train(schema.compose(*overrides)) for name, overrides in runs.items()}


def until(condition, seconds=30):
    """What a condition gives, once that is something."""
    deadline = time.monotonic() + seconds
    while not (found := condition()):
        assert time.monotonic() < deadline, f"nothing after {seconds} s"
        time.sleep(0.1)
    return found


@pytest.fixture(scope="module")
def address(sweep):
    """Of a TensorBoard that has read all runs."""
    logs, metrics = sweep
    options = ("--logdir", str(logs), "--host", "127.0.0.1", "--port", "0", "--load_fast", "false")
    command = [sys.executable, "-W", "ignore", "-m", "tensorboard.main", *options, "--reload_interval", "1"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True) as process:
        try:
            at = next(found[0] for line in process.stderr if (found := re.search(r"http://127\.0\.0\.1:\d+/", line)))

            def has_read_all():
                with urlopen(f"{at}data/plugin/scalars/tags") as answer:
                    tags = json.load(answer)
                return all("test/acc" in tags.get(name, {}) for name in metrics)

            until(has_read_all)
            yield at
        finally:
            process.terminate()


def assert_quiet(browser, address):
    """Assert that no error was reported and nothing was asked of another server."""
    assert [entry for entry in browser.get_log("browser") if entry["level"] == "SEVERE"] == []
    urls = requested(browser)
    assert address in urls
    assert all(url.startswith((address, "data:", f"blob:{address}")) for url in urls), urls


def values_of(browser, name, num_runs):
    """The values of runs in the card of a scalar, once it shows so many."""
    row = f"//scalar-card[.//*[normalize-space()='{name}']]//tb-data-table-content-row"
    rows = until(lambda: len(found := browser.find_elements("xpath", row)) == num_runs and found)
    shown = [row.text.split("\n") for row in rows]
    return {run: float(value) for run, _, value, *_ in shown}


def test_time_series_show_the_runs_and_their_accuracies_first(browser, address, sweep):
    _, metrics = sweep
    visit(browser, f"{address}#timeseries")
    for name, key in FIRST_COLUMNS.items():
        expected = {run: found[key] for run, found in metrics.items() if key in found}
        assert values_of(browser, name, len(expected)) == pytest.approx(expected, rel=1e-3)
    assert_quiet(browser, address)


def test_images_are_drawn(browser, address):
    visit(browser, f"{address}#images")
    expected = {("sweep/0", tag) for tag in ("train/images", "test/predictions", "test/confusion")}
    until(
        lambda: (
            {(run, tag) for run, tag, width in browser.execute_script(IMAGE, "tf-image-loader") if width} == expected
        )
    )
    assert_quiet(browser, address)


def test_hparams_compare_all_runs_accuracies_first(browser, address, sweep):
    _, metrics = sweep
    visit(browser, f"{address}#hparams")

    def table():
        cells = browser.execute_script(TEXT, "vaadin-grid-cell-content")
        num = len(cells) // (1 + len(metrics))
        rows = [cells[i : i + num] for i in range(0, len(cells), num)] if num else []
        return rows if {row[0] for row in rows} == {"Trial ID", *metrics} else None

    header, *rows = until(table)
    assert header[7:10] == ["hp/test_acc", "hp/test_acc_tta", "hp/val_acc"]  # after five hyper-parameters
    shown = {row[0]: dict(zip(header, row, strict=True)) for row in rows}
    for run, found in metrics.items():
        for column, key in FIRST_COLUMNS.items():
            assert shown[run][column] == (f"{found[key]:#.5g}" if key in found else "")
    rates = {run: float(row["optimizer.lr"]) for run, row in shown.items()}
    assert rates == {"sweep/0": 0.001, "sweep/1": 0.02, "sweep/2": 0.001}
    choices = browser.execute_script(TEXT, "paper-checkbox")
    assert {"optimizer.momentum", "optimizer.betas"} <= set(choices)  # which one kind of optimizer has each
    assert_quiet(browser, address)
