"""Compare runs, grouped by what differs between them, or checkpoints on the same images.

Examples:
    python compare.py runs=logs/lr
    python compare.py 'runs=[logs/a,logs/b]' metric=test/acc_tta
    python compare.py runs=logs/lr baseline=optimizer.lr=0.001
    python compare.py 'ckpt=[a.ckpt,b.ckpt]'                # which one is right where
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_lightning.cli.main import run
from cifar_lightning.config.invocation import Invocation


def prelude(overrides: list[str], config_dirs: list[Path]) -> list[str]:
    """The command line, with the folder for the comparison before it."""
    from cifar_lightning.cli.overrides_to_compare import compare_prelude  # late, so that --help answers at once

    return compare_prelude(overrides, config_dirs)


def main(cfg: DictConfig, invocation: Invocation) -> None:
    """Compare as configured."""
    from cifar_lightning.commands.compare import compare

    compare(cfg, invocation)


if __name__ == "__main__":
    run(main, config_name="compare", sweeps=False, prelude=prelude)
