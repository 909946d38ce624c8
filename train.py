"""Train and test a classifier: ``python train.py experiment=resnet18 trainer.accelerator=gpu``."""

from omegaconf import DictConfig

from cifar_lightning.config import UserError
from cifar_lightning.entry import report, run, sweeper_optimises


def main(cfg: DictConfig) -> float | None:
    """Train as configured; return the validation accuracy, if there is a validation split, for sweepers."""
    if sweeper_optimises() and cfg.data.val_size == 0:
        error = UserError("data.val_size must be above 0 for a sweeper that optimises val/acc, got 0; such as 5000")
        raise SystemExit(report(error))  # for good: an exception would only end this job
    from cifar_lightning.training import train  # late, so that --help answers at once

    return train(cfg).get("val/acc")


if __name__ == "__main__":
    run(main, config_name="train")
