"""The project beside the loops it stands for: the same recipe, in turn, on this machine, as ratios.

    python benchmarks/loops.py tutorial     # the tutorial's own loop, a bare loop, train(cfg)
    python benchmarks/loops.py resnet18     # a plain fp32 loop, a bare loop in the fast precision, train(cfg)
    python benchmarks/loops.py speedrun     # airbench94 in two ways, ours bare, train(cfg); an hour
    python benchmarks/loops.py speedrun_gpu --accelerator gpu --compile reduce-overhead --one-process --rounds 10

Machines are shared and their speed drifts, so contenders take turns and only ratios within a round are compared. Each
runs in a process of its own, or with --one-process all in this one, where starting takes longer than the run; all are
given the options that follow.
"""

import argparse
import json
from pathlib import Path
from statistics import median

import torch
from contenders import run
from harness import Figures, Options, arguments, in_process
from rich.console import Console
from rich.table import Table

from cifar_lightning.device import device_name

SUITES = {
    "tutorial": ("tutorial_loop", "bare_tutorial", "project_tutorial"),
    "speedrun": ("reference_speedrun", "reference_speedrun_kept", "bare_speedrun", "project_speedrun"),
    "speedrun_gpu": ("bare_speedrun_gpu", "project_speedrun_gpu"),
    "resnet18": ("plain_resnet18", "bare_resnet18", "project_resnet18"),
}
COLUMNS = {
    "ms_per_step": "ms/step",
    "images_per_second": "images/s",
    "warm_seconds": "warm s",
    "seconds": "s in all",
    "peak_gib": "peak GiB",
}
RATIOS = ("ms_per_step", "warm_seconds", "seconds")


def measure(contender: str, options: Options) -> Figures:
    """Figures of one run of a contender, in a fresh process unless all share this one."""
    if options.one_process:
        found = run(contender, options)
        return {key: value for key, value in found.items() if key not in ("seconds", "peak_gib")}  # of one run each
    given = [
        f"--dataset={options.dataset.__module__}.{options.dataset.__qualname__}",
        f"--root={options.root}",
        f"--steps={options.steps}",
        f"--accelerator={options.accelerator}",
        f"--compile={options.compile}",
    ]
    if options.epochs is not None:
        given.append(f"--epochs={options.epochs}")
    return in_process(Path(__file__).with_name("contenders.py"), contender, *given)


def table(contenders: tuple[str, ...], rounds: list[dict[str, Figures]], device: str) -> Table:
    """Medians over the rounds, and of the ratios to the last contender, which is the project."""
    shown = Table(title=f"{device_name(torch.device(device))}, torch {torch.__version__}, n = {len(rounds)}")
    shown.add_column("contender")
    for name in (*COLUMNS.values(), "acc", *(f"project / this, {COLUMNS[key]}" for key in RATIOS)):
        shown.add_column(name, justify="right")
    for contender in contenders:
        runs = [by_name[contender] for by_name in rounds]
        acc = "" if runs[0]["acc"] is None else f"{100 * median(found['acc'] for found in runs):.2f} %"
        projects = [by_name[contenders[-1]] for by_name in rounds]
        figures = [f"{median(found[key] for found in runs):,.2f}" if key in runs[0] else "" for key in COLUMNS]
        ratios = [
            f"{median(its[key] / found[key] for its, found in zip(projects, runs, strict=True)):.3f}"
            if key in runs[0] and key in projects[0]
            else ""
            for key in RATIOS
        ]
        label = f"{contender} {runs[0]['precision']}" if "precision" in runs[0] else contender
        shown.add_row(label, *figures, acc, *ratios)
    return shown


def main() -> None:
    """Run a suite and print its table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(parents=[arguments()], description=__doc__, formatter_class=formatter)
    parser.add_argument("suite", choices=SUITES)
    parser.add_argument("--rounds", type=int, default=1)
    parser.add_argument("--one-process", action="store_true")
    options = parser.parse_args()
    contenders = SUITES[options.suite]
    if options.accelerator == "gpu" and not options.suite.startswith("speedrun"):
        parser.error(f"--accelerator gpu is for the speedruns, got {options.suite}")
    if options.one_process and options.accelerator == "cpu":
        parser.error("--one-process is for --accelerator gpu: on a CPU contenders choose threads and memory for good")
    rounds = []
    for number in range(options.rounds):
        # Turned around every other time, so that no contender is always the first on a cool machine.
        order = contenders if number % 2 == 0 else contenders[::-1]
        rounds.append({contender: measure(contender, options) for contender in order})
        for contender in contenders:
            print(json.dumps(rounds[-1][contender]), flush=True)
    device = "cuda" if options.accelerator == "gpu" else "cpu"
    Console(width=200).print(table(contenders, rounds, device))


if __name__ == "__main__":
    main()
