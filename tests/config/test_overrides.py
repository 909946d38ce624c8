"""What is typed as text stays that text, and ``~`` is the home folder."""

import os
import shlex
import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from omegaconf import OmegaConf

from cifar_lightning.config.overrides import argument, as_texts, quoted, values
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


@pytest.mark.parametrize("text", ["宠物", "图片/假期 1", "Überraschung", "кошки/2.ckpt"])
def test_text_in_any_language_needs_no_quotes(compose, text, tmp_path, monkeypatch):
    for is_there in (False, True):
        cfg = compose(f"name={text}", f"output_dir={text}", f"data.root={text}")
        assert (cfg.name, cfg.output_dir, cfg.data.root) == (text, text, text), is_there
        monkeypatch.chdir(tmp_path)
        Path(text).mkdir(parents=True, exist_ok=True)
    assert as_texts([f"name={text},b"]) == [f'name="{text}",b']
    assert as_texts(["data.root=${oc.env:猫}", "images=[猫.png]"]) == ["data.root=${oc.env:猫}", "images=[猫.png]"]


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
    for asked, names in ((["~/a", 7], ("/home/me/a", "7")), ("~", ("/home/me",)), (None, ()), ([], ())):
        assert resolve_evaluation(OmegaConf.merge(cfg, {"ckpt": "x", "other_sets": asked})).other_sets == names


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


# Paths in commands that are shown


@pytest.mark.parametrize(
    ("path", "typed"),
    [
        ("logs/a_b-1.5/last.ckpt", "ckpt=logs/a_b-1.5/last.ckpt"),
        ("a b/l=1.ckpt", "'ckpt=\"a b/l=1.ckpt\"'"),
        ("~a/last.ckpt", "'ckpt=\"./~a/last.ckpt\"'"),
        ("auto", "ckpt=./auto"),
        ("\u00e9", "'ckpt=\"\u00e9\"'"),
        ('a"b\\', '\'ckpt="a\\"b\\\\"\''),
    ],
)
def test_paths_are_shown_as_they_are_typed(path, typed):
    assert argument("ckpt", Path(path)) == typed


HOSTILE = (
    *("it's", 'say "hi"', '"', "'", "''\"\"", "\\", "a\\\\", '\\"', "\\'", "a\\\n", "a\nb", "a\tb", "a b", " a"),
    *("$HOME", "a`id`", "a$(id)", "a!b", "a;b", "a|b", "a&b", "a#b", "#", "*", "?", "@x", "%x", "a:b", "a=b"),
    *("[x]", "(x)", "{x}", "a,b", "a, b", "choice(a,b)", "~", "~root", "~/x", "-m", "--info", "+x"),
    *("null", "Auto", "true", "1e3", "0x10", "nan", "\u00e9 \u4e2d"),
)


@pytest.mark.parametrize("path", HOSTILE)
def test_a_hostile_path_survives_the_shell_and_hydra(path):
    for key in ("ckpt", "resume", "output_dir"):
        check_is_read_back(key, Path(path))
        check_is_read_back(key, Path("/logs") / path / "last.ckpt")


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", 100)), deadline=None, derandomize=True)
@given(text=st.text(st.sampled_from("ab/\\\"'$`~-+=,[](){}:#!*%@ \t\n\u00e9.01e"), min_size=1, max_size=9))
def test_any_path_survives_the_shell_and_hydra(text):
    if "${" not in text and str(Path(text)).strip():
        check_is_read_back("ckpt", Path(text))


def check_is_read_back(key: str, path: Path) -> None:
    (typed,) = shlex.split(argument(key, path))
    found = values(as_texts([typed]))[key]
    assert Path(found) == path
    assert not found.startswith("~")
    assert found not in ("auto", "null")


@pytest.mark.skipif(shutil.which("sh") is None, reason="this system has no POSIX shell")
def test_a_shell_reads_hostile_paths_as_shlex_does():
    typed = [argument("ckpt", Path(path)) for path in HOSTILE]
    shown = subprocess.run(["sh", "-c", rf"printf '%s\0' {' '.join(typed)}"], capture_output=True, check=True).stdout
    assert shown.decode().split("\0")[:-1] == [shlex.split(argument)[0] for argument in typed]


@pytest.mark.parametrize("path", ["it's", 'a"b', "a\\b\\", "[a], b", "\u00e9 $x", "~x"])
def test_a_hostile_path_reaches_the_settings(compose, path):
    (typed,) = shlex.split(argument("output_dir", Path(path)))
    assert Path(compose(typed).output_dir) == Path(path)
