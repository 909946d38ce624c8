"""Train and test a classifier: ``python train.py experiment=resnet18 trainer.accelerator=gpu``."""

from typing import NoReturn

from omegaconf import DictConfig

from cifar_lightning.cli.main import is_sweep, report, run, sweeper_optimises
from cifar_lightning.errors import UserError


def with_record(arguments: list[str]) -> list[str]:
    """The command line with the overrides of the run that it resumes before it."""
    given = dict(argument.partition("=")[::2] for argument in arguments)
    resume = given.pop("resume", "null").strip("'\"")
    if resume in ("null", ""):
        return arguments
    if resume == "auto" and "output_dir" not in given:
        raise UserError("resume=auto goes on in output_dir, if there is a run: set output_dir=FOLDER too")
    from cifar_lightning.cli.preludes import overrides_to_resume

    return overrides_to_resume(resume, arguments)


def main(cfg: DictConfig) -> float | None:
    """Train as configured; return the validation accuracy, if there is a validation split, for sweepers."""
    if sweeper_optimises() and cfg.data.val_size == 0:
        _refuse("data.val_size must be above 0 for a sweeper that optimises val/acc, got 0; such as 5000")
    if is_sweep():
        if cfg.resume not in (None, "auto"):
            _refuse(f"resume={cfg.resume}: a sweep is resumed by its own command, with the same output_dir")
        from cifar_lightning.runs.folder import CONFIG
        from cifar_lightning.runs.records import finished_metrics
        from cifar_lightning.runs.sweep import place_of_job

        try:
            place = place_of_job(cfg)
        except UserError as error:
            _refuse(str(error))
        cfg.output_dir, cfg.resume = str(place), "auto" if (place / CONFIG).exists() else None
        if (metrics := finished_metrics(place)) is not None:
            print(f"{cfg.output_dir} is done already")
            return metrics.get("val/acc")
    from cifar_lightning.commands.train import train  # late, so that --help answers at once

    return train(cfg).get("val/acc")


def _refuse(message: str) -> NoReturn:
    raise SystemExit(report(UserError(message)))  # for good: an exception would only end this job


if __name__ == "__main__":
    run(main, config_name="train", prepare=with_record)
