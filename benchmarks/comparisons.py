"""How long compare.py takes for many runs, as a command: imports, reading, tests, tables and page.

python benchmarks/comparisons.py --runs 1000 10000 --seeds 5 --rounds 3
"""

import argparse
import json
import random
import resource
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from cifar_lightning.config.schema import CONF


def main() -> None:
    """Make runs as train.py leaves them, compare them, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--runs", type=int, nargs="+", default=[1_000, 10_000])
    parser.add_argument("--seeds", type=int, default=5, help="runs of a group")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for num_runs in arguments.runs:
        with tempfile.TemporaryDirectory() as folder:
            _make_runs(Path(folder), num_runs, arguments.seeds)
            seconds = [_seconds(folder) for _ in range(arguments.rounds)]
        waited, cpu = (", ".join(f"{value:.2f}" for value in values) for values in zip(*seconds, strict=True))
        print(f"{num_runs:6,} runs in groups of {arguments.seeds}  {waited} s, of the CPU {cpu} s", flush=True)


def _make_runs(folder: Path, num_runs: int, num_seeds: int) -> None:
    random.seed(0)
    for number in range(num_runs):
        group, seed = divmod(number, num_seeds)
        run = folder / str(number) / ".hydra"
        run.mkdir(parents=True)
        (run / "config.yaml").touch()
        overrides = [f"optimizer.lr={0.001 * (group + 1):g}", f"seed={seed}", "data.val_size=5000", "name=many"]
        acc = random.gauss(0.5, 0.01)
        metrics = {"val/acc": acc, "test/acc": random.gauss(acc, 0.005), "seed": seed, "steps": 1, "name": "many"}
        metrics |= {f"val/metric{i}": 0.5 for i in range(20)}  # a run has some forty numbers
        (run.parent / "metrics.json").write_text(json.dumps({**metrics, "train_seconds": 10.0, "overrides": overrides}))


def _seconds(folder: str) -> tuple[float, float]:
    """Seconds of the command, and those of the CPU."""
    began, before = time.perf_counter(), resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, CONF.parent / "compare.py", f"runs={folder}"], check=True, capture_output=True)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return time.perf_counter() - began, after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


if __name__ == "__main__":
    main()
