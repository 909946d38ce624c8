"""Evaluate a checkpoint: accuracy with its interval, figures of each class, a report to look at.

Examples:
    python evaluate.py ckpt=logs/tutorial/<time>/checkpoints/last.ckpt
    python evaluate.py ckpt=logs/tutorial/<time>/checkpoints/best.ckpt split=val
    python evaluate.py ckpt=logs/tutorial/<time>/checkpoints/last.ckpt tta=1 corruptions=true
    python evaluate.py -m ckpt=a.ckpt,b.ckpt                # several, each into its own run folder
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_lightning.cli.main import run
from cifar_lightning.config.invocation import Invocation


def prelude(overrides: list[str], config_dirs: list[Path]) -> list[str]:
    """The command line, with the checkpoint's own data and precision before it."""
    from cifar_lightning.cli.overrides_from_checkpoint import checkpoint_prelude  # late, so that --help answers at once

    return checkpoint_prelude(overrides, config_dirs)


def main(cfg: DictConfig, invocation: Invocation) -> None:
    """Evaluate as configured."""
    from cifar_lightning.commands.evaluate import evaluate

    evaluate(cfg, invocation)


if __name__ == "__main__":
    run(main, config_name="evaluate", prelude=prelude, ranks_of="evaluate")
