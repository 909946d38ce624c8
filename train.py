"""Train and test a classifier: the curves, the checkpoints and the final numbers go into logs/<name>/<time>/.

Examples:
    python train.py                                         # the tutorial's recipe on CIFAR-10
    python train.py data=synthetic                          # the same without a download
    python train.py experiment=speedrun                     # 94 %
    python train.py experiment=finetune data.root=pets      # your own pictures, one folder for each class
    python train.py model=resnet18 optimizer=adamw schedule=cosine trainer.max_epochs=10 data.batch_size=128
    python train.py -m optimizer.lr=0.001,0.002 seeds=3     # a sweep, and its comparison
    python train.py resume=logs/tutorial/<time>             # a run that was stopped
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_lightning.cli.main import run
from cifar_lightning.config.invocation import Invocation

RETURNED = "val/acc"
"""The metric that sweepers get."""


def prelude(overrides: list[str], config_dirs: list[Path]) -> list[str]:
    """The command line, with the overrides of the run that it resumes before it."""
    from cifar_lightning.cli.overrides_from_run import resume_prelude  # late, so that --help answers at once

    return resume_prelude(overrides)


def check_job(cfg: DictConfig, folder: Path) -> None:
    """Refuse a sweep before its first job runs, where the place of one of its jobs is taken."""
    from cifar_lightning.runs.sweep import refuse_other_job

    refuse_other_job(cfg, folder)


def after_sweep(folder: Path) -> None:
    """Compare the runs of a sweep."""
    from cifar_lightning.commands.compare import compare_sweep

    compare_sweep(folder)


def main(cfg: DictConfig, invocation: Invocation) -> float | None:
    """Train as configured; return the validation accuracy, if there is a validation split, for sweepers."""
    from cifar_lightning.commands.train import train

    return train(cfg, invocation).get(RETURNED)


if __name__ == "__main__":
    run(
        main,
        config_name="train",
        prelude=prelude,
        check_job=check_job,
        returned=RETURNED,
        after_sweep=after_sweep,
        ranks_of="${name}",
    )
