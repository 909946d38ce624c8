"""From a composed config to frozen settings."""

import pytest
from omegaconf import OmegaConf

from cifar_lightning.config.resolve import Facts, as_plain, frozen, resolve, settle
from cifar_lightning.errors import UserError

FACTS = Facts(
    classes=("a", "b"),
    fingerprint={"train": "0", "test": "1", "val": "2"},
    in_channels=1,
    image_size=(8, 9),
    mean=[0.25],
    std=[0.125],
    precision="bf16-mixed",
    num_threads=3,
)


def test_a_config_is_resolved_and_not_changed(compose):
    cfg = compose("augment=alternating_flip", "freeze=[[conv1,0.5]]")
    before = OmegaConf.to_yaml(cfg)
    settings = resolve(cfg)
    assert settings.augment["mean"] == (0.5,)  # ${normalize.mean}
    assert settings.freeze == (("conv1", 0.5),)
    assert OmegaConf.to_yaml(cfg) == before


def test_settings_are_frozen_and_a_plain_copy_is_not(compose):
    settings = resolve(compose("callbacks=lookahead"))
    with pytest.raises(AttributeError, match="cannot assign to field 'seed'"):
        settings.seed = 1
    with pytest.raises(TypeError, match="does not support item assignment"):
        settings.trainer["max_epochs"] = 1
    with pytest.raises(TypeError, match="does not support item assignment"):
        settings.callbacks["lookahead"]["every"] = 1
    plain = as_plain(settings)
    plain["callbacks"]["lookahead"]["every"] = 1
    assert settings.callbacks["lookahead"]["every"] == 5
    assert frozen(as_plain(settings.trainer)) == settings.trainer


def test_what_data_and_machine_decide_joins_in_one_step(compose):
    config = resolve(compose("normalize=auto", "augment=alternating_flip", "trainer.precision=auto"))
    settings = settle(config, FACTS)
    assert settings.classes == ("a", "b")
    assert settings.model == {"name": "tutorial", "num_classes": 2, "in_channels": 1}
    assert settings.normalize == {"mean": (0.25,), "std": (0.125,)}
    assert settings.augment["mean"] == (0.25,)
    assert settings.trainer["precision"] == "bf16-mixed"
    assert settings.num_threads == 3
    assert config.normalize == {"mean": "auto", "std": "auto"}  # another object


def test_what_is_given_stays(compose):
    config = resolve(compose("normalize.mean=[0.4]", "trainer.precision=64-true", "num_threads=2"))
    settings = settle(config, FACTS)
    assert settings.normalize == config.normalize
    assert settings.trainer == config.trainer
    assert settings.num_threads == 2


def test_a_run_from_python_gets_a_folder_of_its_own(compose):
    folders = [resolve(compose("output_dir=null", "name=mine")).output_dir for _ in range(2)]
    assert all(folder.startswith("logs/mine/20") for folder in folders)
    assert folders[0] != folders[1]


@pytest.mark.parametrize("key", ["normalize", "model", "data", "trainer"])
def test_a_section_is_a_choice(compose, key):
    cfg = compose()
    cfg[key] = 3
    with pytest.raises(UserError, match=f"^{key} must be one of the choices in conf/{key}, got 3$"):
        resolve(cfg)


def test_a_section_that_may_be_left_out(compose):
    cfg = compose()
    cfg.schedule = "cosine"
    with pytest.raises(UserError, match=r"^schedule must be one of the choices in conf/schedule or null, got"):
        resolve(cfg)


def test_a_run_that_is_resumed_from_python_is_resumed_in_its_own_folder(compose):
    assert resolve(compose("output_dir=null", "resume=logs/a/b")).output_dir == "logs/a/b"
    with pytest.raises(UserError, match=r"^resume=auto resumes the run in output_dir, .* set output_dir=FOLDER too$"):
        resolve(compose("output_dir=null", "resume=auto"))


def test_a_trainer_file_of_ones_own_must_have_all_keys(compose):
    cfg = compose()
    cfg.trainer = {"_target_": "lightning.Trainer", "max_epochs": 1}
    with pytest.raises(UserError, match=r"trainer lacks accelerator, .*: .* builds upon the project's with defaults:"):
        resolve(cfg)
