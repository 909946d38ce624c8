"""Search for the values that validate best; each trial is a run of train.py in the study's folder.

Examples:
    python search.py study=logs/lr search=lr data.val_size=5000                 # a space with a name, 20 trials
    python search.py study=logs/my optimizer.lr='tag(log,interval(1e-4,1e-1))' data.val_size=5000 n_trials=40
    python search.py study=logs/bs sampler=grid 'data.batch_size=choice(4,16,64)' seeds=3 data.val_size=5000
    python search.py study=logs/rs search=lr experiment=speedrun data.val_size=5000 n_workers=2
"""

from pathlib import Path

from omegaconf import DictConfig

from cifar_lightning.cli.main import run
from cifar_lightning.config.invocation import Invocation


def prelude(overrides: list[str], config_dirs: list[Path]) -> list[str]:
    """The keys of a search, with what is typed for train.py in one of them."""
    from cifar_lightning.cli.overrides_to_search import search_prelude  # late, so that --help answers at once

    return search_prelude(overrides, config_dirs)


def main(cfg: DictConfig, invocation: Invocation) -> None:
    """Search as configured."""
    from cifar_lightning.commands.search import search

    search(cfg, invocation)


if __name__ == "__main__":
    run(main, config_name="search", sweeps=False, prelude=prelude)
