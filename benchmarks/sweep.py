"""How long a sweep of finished jobs takes to find that out.

Shown are seconds, and seconds of the CPU, from when all is imported: of jobs whose keys are known, and of jobs that are
composed, as all are once a file of conf/ has changed. Their comparison at the end is part of it.

    python benchmarks/sweep.py --jobs 300 3000 --rounds 3
"""

import argparse
import io
import random
import runpy
import sys
import tempfile
import time
from contextlib import redirect_stdout, suppress
from pathlib import Path

import hydra

import cifar_lightning.commands.train  # noqa: F401 - which would be timed otherwise
from cifar_lightning.config.invocation import FROM_PYTHON
from cifar_lightning.config.schema import CONF, compose
from cifar_lightning.runs.folder import record
from cifar_lightning.runs.jobkeys import common_key, job_key, record_key
from cifar_lightning.runs.metrics_file import write_metrics


def main() -> None:
    """Make sweeps of finished jobs, run them again, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, nargs="+", default=[300, 3_000])
    parser.add_argument("--composed", type=int, nargs="*", default=[300], help="numbers of jobs without keys")
    parser.add_argument("--rounds", type=int, default=3)
    arguments = parser.parse_args()
    for kind, numbers in (("by their keys", arguments.jobs), ("composed", arguments.composed)):
        for num_jobs in numbers:
            seconds = [_seconds(num_jobs, has_keys=kind != "composed") for _ in range(arguments.rounds)]
            waited, cpu = (", ".join(f"{value:.2f}" for value in values) for values in zip(*seconds, strict=True))
            print(f"{num_jobs:6,} jobs {kind:14} {waited} s, of the CPU {cpu} s", flush=True)


def _make_finished(sweep: Path, num_jobs: int, *, has_keys: bool) -> None:
    with hydra.initialize_config_dir(str(CONF), version_base="1.3"):
        common = common_key(hydra.compose("train", ["hydra.mode=MULTIRUN"], return_hydra_config=True).hydra)
    cfg = compose("data=synthetic")
    for seed in range(num_jobs):
        cfg.seed, cfg.output_dir = seed, str(sweep / str(seed))
        record(sweep / str(seed), cfg, FROM_PYTHON)
        metrics = {"steps": 1, "seed": seed, "test/acc": random.gauss(0.9, 0.01), "train_seconds": 10.0}
        write_metrics(sweep / str(seed), {**metrics, "overrides": ["data=synthetic", f"seed={seed}"]})
        if has_keys:
            record_key(sweep / str(seed), job_key(common, ["data=synthetic", f"seed={seed}", f"output_dir={sweep}"]))


def _seconds(num_jobs: int, *, has_keys: bool) -> tuple[float, float]:
    """Seconds, and those of the CPU."""
    with tempfile.TemporaryDirectory() as sweep, redirect_stdout(io.StringIO()) as shown:
        _make_finished(Path(sweep), num_jobs, has_keys=has_keys)
        sys.argv = ["train.py", "-m", "data=synthetic", f"seed=range({num_jobs})", f"output_dir={sweep}"]
        began, cpu_before = time.perf_counter(), time.process_time()
        with suppress(SystemExit):
            runpy.run_path(str(CONF.parent / "train.py"), run_name="__main__")
        spent = time.perf_counter() - began, time.process_time() - cpu_before
    assert shown.getvalue().count(" is done already") == num_jobs
    assert ("Launching" in shown.getvalue()) is not has_keys
    assert f"Comparison: {num_jobs:,} runs, 1 groups" in shown.getvalue()
    return spent


if __name__ == "__main__":
    main()
