"""How long a sweep of finished jobs takes to find that out, beside Hydra's own time for as many jobs.

Counted is the time of the CPU beyond that of a sweep of one job, which is the start of Python.

    python benchmarks/sweep.py --jobs 300
"""

import argparse
import resource
import subprocess
import sys
import tempfile
from pathlib import Path

import hydra
from omegaconf import DictConfig

from cifar_lightning.config.invocation import FROM_PYTHON
from cifar_lightning.config.schema import CONF, compose
from cifar_lightning.runs.folder import record
from cifar_lightning.runs.metrics_file import write_metrics

ROOT = CONF.parent


def main() -> None:
    """Make a sweep of finished jobs, run it again, and print the seconds."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--jobs", type=int, default=300)
    num_jobs = parser.parse_args().jobs
    with tempfile.TemporaryDirectory() as temporary:
        sweep = Path(temporary, "sweep")
        cfg = compose("data=synthetic")
        for seed in range(num_jobs):
            cfg.seed, cfg.output_dir = seed, str(sweep / str(seed))
            record(sweep / str(seed), cfg, FROM_PYTHON)
            write_metrics(sweep / str(seed), {"steps": 1})
        for name, script, folder in (
            ("Hydra alone", [__file__, "--hydra-alone"], Path(temporary, "hydra")),
            ("train.py", [str(ROOT / "train.py")], sweep),
        ):
            one, all_jobs = (
                _cpu_seconds(*script, "-m", "data=synthetic", f"seed=range({num})", f"output_dir={folder}")
                for num in (1, num_jobs)
            )
            seconds = all_jobs - one
            print(f"{name:12} {one:5.1f} s to start, then {seconds:6.1f} s, {seconds / num_jobs * 1000:5.1f} ms a job")


def _cpu_seconds(*command: str) -> float:
    before = resource.getrusage(resource.RUSAGE_CHILDREN)
    subprocess.run([sys.executable, *command], cwd=ROOT, check=True, stdout=subprocess.DEVNULL)
    after = resource.getrusage(resource.RUSAGE_CHILDREN)
    return after.ru_utime + after.ru_stime - before.ru_utime - before.ru_stime


@hydra.main(version_base="1.3", config_path=str(CONF), config_name="train")
def hydra_alone(cfg: DictConfig) -> None:
    """A job that does nothing."""


if __name__ == "__main__":
    if "--hydra-alone" in sys.argv:
        sys.argv.remove("--hydra-alone")
        import lightning  # noqa: F401 - which train.py imports too

        hydra_alone()
    else:
        main()
