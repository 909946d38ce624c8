"""The project beside the loops it stands for: the same recipe, in turn, on this machine, as ratios.

    python benchmarks/compare.py tutorial     # the tutorial's own loop, a bare loop, train(cfg)
    python benchmarks/compare.py resnet18     # a plain fp32 loop, a bare loop in the fast precision, train(cfg)
    python benchmarks/compare.py speedrun     # the record's recipe in two ways, ours bare, train(cfg); an hour

Machines are shared and their speed drifts, so contenders take turns and only ratios within a round are compared. Each
runs in a process of its own; all are given the options that follow.
"""

import argparse
import json
import subprocess
import sys
from pathlib import Path
from statistics import median
from typing import Any

import torch
from contenders import arguments
from rich.console import Console
from rich.table import Table

from cifar_lightning.devices import device_name

SUITES = {
    "tutorial": ("tutorial_loop", "bare_tutorial", "project_tutorial"),
    "speedrun": ("reference_speedrun", "reference_speedrun_kept", "bare_speedrun", "project_speedrun"),
    "resnet18": ("plain_resnet18", "bare_resnet18", "project_resnet18"),
}
COLUMNS = {"ms_per_step": "ms/step", "images_per_second": "images/s", "seconds": "s in all", "peak_gib": "peak GiB"}


def measure(contender: str, options: list[str]) -> dict[str, Any]:
    """Figures of one run of a contender in a fresh process."""
    script = Path(__file__).with_name("contenders.py")
    command = [sys.executable, str(script), contender, *options]
    output = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    return json.loads(output.splitlines()[-1])


def table(contenders: tuple[str, ...], rounds: list[dict[str, dict[str, Any]]]) -> Table:
    """Medians over the rounds, and of the ratios to the last contender, which is the project."""
    shown = Table(title=f"{device_name(torch.device('cpu'))}, torch {torch.__version__}, n = {len(rounds)}")
    shown.add_column("contender")
    for name in (*COLUMNS.values(), "acc", "project / this, ms/step", "project / this, s in all"):
        shown.add_column(name, justify="right")
    for contender in contenders:
        runs = [by_name[contender] for by_name in rounds]
        acc = "" if runs[0]["acc"] is None else f"{100 * median(run['acc'] for run in runs):.2f} %"
        ratios = [
            median(by_name[contenders[-1]][key] / by_name[contender][key] for by_name in rounds)
            for key in ("ms_per_step", "seconds")
        ]
        figures = [f"{median(run[key] for run in runs):,.2f}" for key in COLUMNS]
        label = f"{contender} {runs[0]['precision']}" if "precision" in runs[0] else contender
        shown.add_row(label, *figures, acc, *(f"{ratio:.3f}" for ratio in ratios))
    return shown


def main() -> None:
    """Run a suite and print its table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(parents=[arguments()], description=__doc__, formatter_class=formatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--rounds", type=int, default=1)
    options = parser.parse_args()
    target = f"{options.dataset.__module__}.{options.dataset.__qualname__}"
    passed_on = [
        f"--dataset={target}",
        f"--root={options.root}",
        f"--steps={options.steps}",
    ]
    if options.epochs is not None:
        passed_on.append(f"--epochs={options.epochs}")
    contenders = SUITES[options.suite]
    rounds = []
    for number in range(options.rounds):
        # Turned around every other time, so that no contender is always the first on a cool machine.
        order = contenders if number % 2 == 0 else contenders[::-1]
        rounds.append({contender: measure(contender, passed_on) for contender in order})
        for contender in contenders:
            print(json.dumps(rounds[-1][contender]), flush=True)
    Console(width=160).print(table(contenders, rounds))


if __name__ == "__main__":
    main()
