"""Train and test a classifier: ``python train.py experiment=resnet18 trainer.accelerator=gpu``."""

from omegaconf import DictConfig

from cifar_lightning.entry import run


def main(cfg: DictConfig) -> float | None:
    """Train as configured; return the validation accuracy, if there is a validation split, for sweepers."""
    from cifar_lightning.training import train  # late, so that --help answers at once

    return train(cfg).get("val/acc")


if __name__ == "__main__":
    run(main, config_name="train")
