import inspect
from typing import Literal

import hydra
import lightning as L
import pytest
from omegaconf import OmegaConf

from cifar_lightning.config.build import blame, build, build_partial
from cifar_lightning.config.resolve import plain
from cifar_lightning.config.schema import CONF, REFUSED_TRAINER_ARGUMENTS
from cifar_lightning.errors import UserError, nearest
from cifar_lightning.typehints import fits

GROUPS = sorted(f"{path.parent.name}={path.stem}" for path in CONF.glob("*/*.yaml") if path.parent.name != "search")


def test_trainer_default_lists_every_argument_with_lightnings_default():
    ours = OmegaConf.to_container(OmegaConf.load(CONF / "trainer" / "default.yaml"))
    del ours["_target_"]
    parameters = inspect.signature(L.Trainer).parameters.values()
    assert ours == {p.name: p.default for p in parameters if p.name not in REFUSED_TRAINER_ARGUMENTS}
    assert set(REFUSED_TRAINER_ARGUMENTS) < {p.name for p in parameters}


@pytest.mark.parametrize("choice", GROUPS)
def test_every_file_composes_and_builds(choice, compose):
    of_folder = choice in ("data=folder", "experiment=finetune")
    config = plain(compose(choice, *(["data.root=images"] if of_folder else [])))
    nodes = {key: config[key] for key in ("data", "augment", "schedule", "trainer")}
    nodes |= {
        f"{group}.{name}": node for group in ("callbacks", "logger") for name, node in (config[group] or {}).items()
    }
    config["trainer"]["precision"] = None  # auto is resolved before the Trainer is built
    for key, node in nodes.items():
        if node is not None:
            build(node, key)
    assert callable(build_partial(config["optimizer"], "optimizer"))


def test_experiments_say_how_to_run_them():
    for file in (CONF / "experiment").glob("*.yaml"):
        assert f"python train.py experiment={file.stem}" in file.read_text(), file


def test_the_command_line_wins_over_an_experiment_and_an_experiment_over_groups(compose):
    config = compose("experiment=resnet18", "optimizer.lr=0.5")
    assert (config.optimizer.lr, config.optimizer.head_lr, config.model.name) == (0.5, 0.2, "resnet18")


def test_plain_train_is_the_tutorials_recipe(compose):
    config = plain(compose())
    assert config["optimizer"] == {
        "_target_": "cifar_lightning.optim.builders.sgd",
        **{"lr": 0.001, "momentum": 0.9, "weight_decay": 0.0, "nesterov": False},
    }
    assert config["normalize"] == {"mean": [0.5], "std": [0.5]}
    chosen = (config["data"]["batch_size"], config["data"]["val_size"], config["trainer"]["max_epochs"])
    assert chosen == (4, 0, 2)
    assert (config["augment"], config["schedule"], config["model"]["name"]) == (None, None, "tutorial")


def test_imagenet_model_brings_its_normalisation_unless_told_otherwise(compose):
    assert compose("model=torchvision").normalize.mean[0] == 0.485
    assert compose("model=torchvision", "normalize=tutorial").normalize.mean[0] == 0.5


def test_a_misspelt_key_in_a_file_is_refused(tmp_path):
    (tmp_path / "train.yaml").write_text("defaults: [train_schema, _self_]\nsed: 3\n")
    with (
        hydra.initialize_config_dir(str(tmp_path), version_base="1.3"),
        pytest.raises(hydra.errors.ConfigCompositionException, match="'sed' not in 'TrainSchema'"),
    ):
        hydra.compose("train")


# Values against signatures


@pytest.mark.parametrize(
    ("value", "hint", "expected"),
    [
        (1, int, True),
        (1.5, int, False),
        (True, int, False),
        (10**400, int, True),  # beyond what a float can hold
        (1, float, True),
        (float("nan"), float, False),
        (float("inf"), float | None, False),
        ("0.1", float, False),
        ("a", Literal["a", "b"], True),
        ("c", Literal["a", "b"], False),
        (1, Literal[True], False),
        ([0.9, 0.99], tuple[float, float], True),
        ([0.9], tuple[float, float], False),
        ([1, "2"], list[int], False),
        ([1, 2], tuple[int, ...], True),
        (None, str | None, True),
        (None, str, False),
        ({"days": 1}, dict[str, int], True),
        ("x", L.Trainer, False),
    ],
)
def test_fits(value, hint, expected):
    assert fits(value, hint) is expected


OPTIMIZER = {"_target_": "cifar_lightning.optim.builders.sgd", "lr": 0.1}


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"lr": "abc"}, "^optimizer.lr must be a finite number, got 'abc'$"),
        ({"nesterov": 1}, "^optimizer.nesterov must be true or false, got 1$"),
        (
            {"learning_rate": 1},
            "^optimizer.learning_rate is not an argument of cifar_lightning.optim.builders.sgd; allowed: lr, ",
        ),
        ({"momentun": 1}, "^optimizer.momentun is not an argument .*: did you mean momentum\\?$"),
        ({"_target_": "cifar_lightning.optim.builders.sdg"}, "^optimizer._target_: "),
    ],
)
def test_values_that_do_not_fit_name_the_key(values, message):
    with pytest.raises(UserError, match=message):
        build_partial(OPTIMIZER | values, "optimizer")


def test_a_constructors_error_gets_the_full_key():
    with pytest.raises(UserError, match=r"^schedule\.warmup_fraction must be in \[0, 1\), got 2$"):
        build({"_target_": "cifar_lightning.optim.schedules.cosine", "warmup_fraction": 2}, "schedule")
    with pytest.raises(UserError, match=r"^data: no such thing$"), blame("data", {"root": "."}):
        raise ValueError("no such thing")


def test_nearest():
    assert nearest("momentun", ["lr", "momentum"]) == ": did you mean momentum?"
    assert nearest("xyz", ["lr", "momentum"]) == "; allowed: lr, momentum"
