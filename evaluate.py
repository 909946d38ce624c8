"""Judge a checkpoint: ``python evaluate.py ckpt=logs/tutorial/<time>/checkpoints/last.ckpt``."""

from omegaconf import DictConfig

from cifar_lightning.cli.main import run
from cifar_lightning.errors import UserError


def with_checkpoint(arguments: list[str]) -> list[str]:
    """The command line with the checkpoint's own data and precision before it."""
    path = next((argument.partition("=")[2] for argument in arguments if argument.startswith("ckpt=")), None)
    if path is None:
        raise UserError(
            "ckpt=PATH is missing: the checkpoint to judge, such as logs/<name>/<time>/checkpoints/last.ckpt"
        )
    from cifar_lightning.cli.preludes import overrides_from

    given = dict(argument.partition("=")[::2] for argument in arguments)
    own = overrides_from(path.strip("'\""))
    if "data" in given and f"data={given['data']}" not in own:  # the values of the checkpoint's own do not fit another
        own = [override for override in own if not override.startswith("data.")]
    return [*(override for override in own if override.partition("=")[0] not in given), *arguments]


def main(cfg: DictConfig) -> None:
    """Judge as configured."""
    from cifar_lightning.commands.evaluate import evaluate

    evaluate(cfg)


if __name__ == "__main__":
    run(main, config_name="evaluate", prepare=with_checkpoint)
