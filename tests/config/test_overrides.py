"""What is typed as text stays that text, and ``~`` is the home folder."""

import os

import pytest
from omegaconf import OmegaConf

from cifar_lightning.config.overrides import as_texts, quoted
from cifar_lightning.config.resolve import resolve, resolve_evaluation
from cifar_lightning.config.schema import compose as compose_by_hand
from cifar_lightning.errors import UserError


@pytest.fixture(autouse=True)
def home(monkeypatch):
    monkeypatch.setenv("HOME", "/home/me")


@pytest.mark.parametrize("text", ["1e3", "1_000", "0x10", "true", "nan", "-inf", "2026", "0.10"])
def test_text_that_looks_like_a_number_stays_text(compose, text):
    cfg = compose(f"name={text}", f"output_dir={text}", f"data.root={text}")
    assert (cfg.name, cfg.output_dir, cfg.data.root) == (text, text, text)


def test_null_and_words_stay_what_they_are(compose):
    assert as_texts(["output_dir=null", "name=abc", "resume=auto", "seed=1e3", "trainer.max_time=~"]) == [
        "output_dir=null",
        "name=abc",
        "resume=auto",
        "seed=1e3",
        "trainer.max_time=~",
    ]
    assert compose("output_dir=null").output_dir is None


def test_each_job_of_a_sweep_keeps_its_text():
    assert as_texts(["name=1e3,b", "ckpt=~/a,b"]) == ["name='1e3',b", "ckpt='/home/me/a',b"]
    assert as_texts(["name='b, c',1e3", "ckpt='~/a',\"~\""]) == ["name='b, c','1e3'", "ckpt='/home/me/a','/home/me'"]


@pytest.mark.parametrize("typed", ["~/runs/a b", "~", "'~'", "'~/runs/a'", '"~/runs/a"'])
@pytest.mark.parametrize("key", ["output_dir", "data.root"])
def test_the_home_folder_is_put_in(compose, key, typed):
    value = OmegaConf.select(compose(f"{key}={typed}"), key)
    assert value == typed.strip("'\"").replace("~", "/home/me")


def test_the_home_folder_is_put_in_where_a_config_is_written_by_hand(compose):
    cfg = OmegaConf.merge(compose(), {"output_dir": "~/run", "data": {"root": "~/data"}})
    settings = resolve(cfg)
    assert (settings.output_dir, settings.data["root"]) == ("/home/me/run", "/home/me/data")
    assert resolve(OmegaConf.merge(compose(), {"resume": "~/run", "output_dir": None})).output_dir == "/home/me/run"
    cfg = compose_by_hand("ckpt=x", config_name="evaluate")
    settings = resolve_evaluation(OmegaConf.merge(cfg, {"ckpt": "~/last.ckpt", "output_dir": "~/run"}))
    assert (settings.ckpt, settings.output_dir) == ("/home/me/last.ckpt", "/home/me/run")


def test_other_text_with_a_tilde_is_left_alone(compose):
    cfg = compose("name='~/a'", "output_dir='a~b'")
    assert (cfg.name, cfg.output_dir) == ("~/a", "a~b")


def test_a_home_folder_that_nobody_has_is_refused(monkeypatch):
    with pytest.raises(UserError, match=r"output_dir=~nobody-here/x: no home folder is known for ~nobody-here"):
        as_texts(["output_dir=~nobody-here/x"])
    assert os.path.expanduser("~nobody-here") == "~nobody-here"


@pytest.mark.parametrize(
    "override", ["output_dir=", "output_dir=''", 'name="  "', "resume=", "ckpt= ", "data.root=", "name=a,''"]
)
def test_an_empty_text_is_refused(override):
    key = override.partition("=")[0]
    with pytest.raises(UserError, match=rf"^{key}= is empty: write {key}="):
        as_texts([override])


def test_an_empty_note_is_taken(compose):
    assert compose("data=synthetic", "data.note=").data.note == ""


@pytest.mark.parametrize("key", ["output_dir", "name"])
def test_an_empty_text_of_a_config_by_hand_is_refused(compose, key):
    with pytest.raises(UserError, match=f"{key} must not be empty"):
        resolve(OmegaConf.merge(compose(), {key: ""}))


def test_quoting_is_undone_by_reading(compose):
    for text in ("a", "it's", "a\\b\\", 'x"y', "${no}".replace("$", ""), "é b"):
        assert compose(f"data.root={quoted(text)}").data.root == text
