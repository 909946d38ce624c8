"""What thousands of runs cost, as whole commands: compare.py, a sweep started again, TensorBoard, files and bytes.

    python benchmarks/many_runs.py compare restart files --runs 1000 10000 --rounds 3
    python benchmarks/many_runs.py composed --runs 300           # without keys, as once a file of conf/ has changed
    python benchmarks/many_runs.py tensorboard --runs 100 1000 --overrides callbacks=none
    python benchmarks/many_runs.py recipes                       # the bytes of a run of each recipe

The runs are made in a temporary folder, from one that train.py trains here. ``--record`` keeps the figures in
results/scale.json, from which docs/scale.md has its tables. The load is that of the minute before a round.
"""

import argparse
import json
import os
import resource
import socket
import subprocess
import sys
import tempfile
import time
import urllib.request
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from pathlib import Path
from typing import Any

from records import NAMES, RESULTS
from run_folders import RECIPE, TUTORIAL, files, multiply, original, restarted
from scale_tables import RECIPES

from cifar_lightning.checkpoint.format import versions
from cifar_lightning.config.schema import CONF
from cifar_lightning.runs.metrics_file import commit_of

RECORD = RESULTS / "scale.json"
WITHOUT = ("", "callbacks=none", "logger=csv", "logger=none")
"""What a run can leave out."""

NUM_SEEDS = 5
PATIENCE_SECONDS = 900
"""After which TensorBoard is not waited for any longer."""

MOST_BYTES = 10 * 2**30
"""Memory beyond which TensorBoard is ended."""

Row = dict[str, Any]


def timed(*command: str | Path) -> tuple[str, Row]:
    """The output of a script of the project, its seconds, and those of the CPU."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    options: Any = {"check": True, "capture_output": True, "text": True}
    output = subprocess.run([sys.executable, "-W", "ignore", *map(str, command)], **options).stdout
    spent, after = time.perf_counter() - began, resource.getrusage(resource.RUSAGE_CHILDREN)
    cpu = after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime
    return output, {"seconds": spent, "cpu_seconds": cpu}


def compare(sweep: Path, overrides: Sequence[str], num_runs: int) -> Row:
    """``compare.py runs=SWEEP``."""
    output, row = timed(CONF.parent / "compare.py", f"runs={sweep}")
    assert f"{num_runs:,} runs, {num_runs // NUM_SEEDS:,} groups" in output
    return row


def restart(sweep: Path, overrides: Sequence[str], num_runs: int) -> Row:
    """``train.py -m`` over jobs that have all ended, with the comparison at the end."""
    output, row = timed(CONF.parent / "train.py", *restarted(sweep, overrides, num_runs, NUM_SEEDS))
    assert output.count(" is done already") == num_runs
    assert f"{num_runs:,} runs, {num_runs // NUM_SEEDS:,} groups" in output
    return row


def tensorboard(sweep: Path, overrides: Sequence[str], num_runs: int) -> Row:
    """``tensorboard --logdir SWEEP`` until it lists all runs, and until it has the test accuracy of all of them."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    command = [sys.executable, "-m", "tensorboard.main", "--logdir", str(sweep), "--port", str(port)]
    began = time.perf_counter()
    process = subprocess.Popen([*command, "--host", "127.0.0.1"], stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    row: Row = {"seconds": None, "all_curves_seconds": None, "bytes": 0}
    try:
        while row["all_curves_seconds"] is None and time.perf_counter() < began + PATIENCE_SECONDS:
            time.sleep(0.25)
            with suppress(OSError):  # until it listens
                if row["seconds"] is None:
                    row["listed"] = len({*_answer(port, "runs")} - {"compare"})
                    row["seconds"] = time.perf_counter() - began if row["listed"] >= num_runs else None
                else:
                    row["curves"] = sum("test/acc" in tags for tags in _answer(port, "plugin/scalars/tags").values())
                    row["all_curves_seconds"] = time.perf_counter() - began if row["curves"] >= num_runs else None
            row["bytes"] = max(row["bytes"], _bytes_of(process.pid))
            if row["bytes"] > MOST_BYTES:
                break
    finally:
        process.terminate()
        process.wait()
    return row


def _answer(port: int, what: str) -> Any:
    with urllib.request.urlopen(f"http://127.0.0.1:{port}/data/{what}", timeout=60) as answer:
        return json.load(answer)


def _bytes_of(pid: int) -> int:
    """Memory of a process and its children, on Linux; 0 once they have ended."""
    try:
        resident = int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")
        children = Path(f"/proc/{pid}/task/{pid}/children").read_text().split()
    except OSError:
        return 0
    return resident + sum(_bytes_of(int(child)) for child in children)


def count_files(sweep: Path, overrides: Sequence[str], num_runs: int) -> Row:
    """Files, folders and bytes, and how long ``ls`` and ``find`` take."""
    row: Row = {"files": 0, "folders": 0, "bytes": 0}
    for entry in files(sweep):
        row["folders" if entry.is_dir() else "files"] += 1
        row["bytes"] += 0 if entry.is_dir() else entry.stat().st_size
    for name, command in (("ls", ["ls", str(sweep)]), ("find", ["find", str(sweep), "-name", "metrics.json"])):
        began = time.perf_counter()
        subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
        row[f"{name}_seconds"] = time.perf_counter() - began
    return row


PARTS: dict[str, Callable[[Path, Sequence[str], int], Row]] = {
    "compare": compare,
    "restart": restart,
    "composed": restart,
    "tensorboard": tensorboard,
    "files": count_files,
}


def measured(
    parts: Sequence[str], overrides: Sequence[str], num_runs: int, num_rounds: int
) -> Iterator[tuple[str, list[Row]]]:
    """The name of each part, and the figures of its rounds, one part after the other over the same runs."""
    with tempfile.TemporaryDirectory() as folder:
        sweep, own = Path(folder, "sweep"), [*RECIPE, *overrides]
        run = original(Path(folder, "original"), own)
        multiply(run, sweep, own, num_runs, NUM_SEEDS, has_keys="composed" not in parts)
        for part in parts:
            rounds = []
            for _ in range(num_rounds):
                load = os.getloadavg()[0]
                rounds.append({**PARTS[part](sweep, own, num_runs), "load": round(load, 1)})
            yield " ".join([part, str(num_runs), *overrides]), rounds


def of_recipes() -> dict[str, Row]:
    """Bytes of a run of each recipe by kind of file: all its epochs, each of one step of a few images."""
    few = ("data=synthetic", "data.batch_size=8", "trainer.limit_train_batches=1", "trainer.limit_test_batches=1")
    commands = {
        **{f"tutorial{without and ' '}{without}": (*TUTORIAL, without) for without in WITHOUT},
        **{recipe: (f"experiment={recipe}", *few) for recipe in RECIPES if recipe != "tutorial"},
    }
    found = {}
    for name, own in commands.items():
        with tempfile.TemporaryDirectory() as folder:
            run = original(Path(folder), [*filter(None, own), "trainer.accelerator=cpu"])
            found[name] = {"checkpoints": 0, "curves": 0, "other": 0, "files": 0}
            for entry in files(run):
                is_curve = entry.name == "metrics.csv" or "tfevents" in entry.name
                kind = "checkpoints" if entry.name.endswith(".ckpt") else "curves" if is_curve else "other"
                found[name][kind] += 0 if entry.is_dir() else entry.stat().st_size
                found[name]["files"] += not entry.is_dir()
    return found


def keep(name: str, hardware: str, figures: Any) -> None:
    """Put figures into the record by a name, in place of earlier ones."""
    record = json.loads(RECORD.read_text()) if RECORD.exists() else {}
    record[name] = {
        "hardware": hardware,
        "commit": commit_of(CONF.parent)["commit"],
        "versions": versions(),
        "figures": figures,
    }
    RECORD.write_text(json.dumps(record, indent=2) + "\n")


def main() -> None:
    """Make runs, time what is asked for, and print it."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("parts", nargs="+", choices=[*PARTS, "recipes"])
    parser.add_argument("--runs", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--overrides", nargs="*", default=[], help="of the runs, such as callbacks=none")
    parser.add_argument("--record", choices=NAMES["hardware"], help="keep the figures, as measured on this hardware")
    options = parser.parse_args()
    if len(options.parts) > 1 and not {"composed", "recipes"}.isdisjoint(options.parts):
        parser.error("composed and recipes have runs of their own: give each alone")

    def shown(name: str, figures: Any) -> None:
        print(name, json.dumps(figures), flush=True)
        if options.record:
            keep(name, options.record, figures)

    if options.parts == ["recipes"]:
        shown("recipes", of_recipes())
        return
    for num_runs in options.runs:
        for name, rounds in measured(options.parts, options.overrides, num_runs, options.rounds):
            shown(name, rounds)


if __name__ == "__main__":
    main()
