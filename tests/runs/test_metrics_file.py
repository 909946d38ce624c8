"""metrics.json: what a result was made with."""

import subprocess

import pytest

from cifar_lightning.config.invocation import FROM_PYTHON, Invocation
from cifar_lightning.runs.metrics_file import commit_of, finished_metrics, provenance, write_metrics


@pytest.fixture
def checkout(tmp_path):
    def git(*arguments: str) -> str:
        command = ["git", "-c", "user.name=x", "-c", "user.email=x@x", *arguments]
        return subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=True).stdout

    git("init")
    (tmp_path / "code.py").write_text("one")
    git("add", ".")
    git("commit", "-m", "one")
    return tmp_path, git("rev-parse", "HEAD").strip()


def test_the_commit_and_whether_files_differ_from_it(checkout):
    folder, commit = checkout
    assert commit_of(folder) == {"commit": commit, "dirty": False}
    (folder / "code.py").write_text("two")
    assert commit_of(folder) == {"commit": commit, "dirty": True}


def test_code_outside_of_a_checkout_has_no_commit(tmp_path):
    assert commit_of(tmp_path) == {"commit": None, "dirty": None}


def test_provenance_has_what_was_typed_and_versions():
    found = provenance(Invocation(overrides=("seed=3",)))
    assert found["overrides"] == ["seed=3"]
    assert {"python", "torch", "lightning", "hydra-core"} <= set(found["versions"])
    assert provenance(FROM_PYTHON)["overrides"] == []


def test_what_is_written_is_found_again(tmp_path):
    assert finished_metrics(tmp_path) is None
    path = write_metrics(tmp_path, {"test/acc": 0.5})
    assert path.read_text() == '{\n  "test/acc": 0.5\n}\n'
    assert finished_metrics(tmp_path) == {"test/acc": 0.5}
    write_metrics(tmp_path, {"loss": float("nan"), "by": {"lr": [0.5, float("inf")]}})
    assert finished_metrics(tmp_path) == {"loss": None, "by": {"lr": [0.5, None]}}
    path.write_text("[]")
    assert finished_metrics(tmp_path) is None


@pytest.mark.parametrize("value", ['"0.5"', "[]", "true", "1" + "0" * 400, "NaN", '{"a": 1}'])
def test_metrics_that_are_no_numbers_are_of_no_finished_run(value, tmp_path):
    (tmp_path / "metrics.json").write_text(f'{{"val/acc": {value}, "output_dir": "a/b"}}')
    assert finished_metrics(tmp_path) is None
    (tmp_path / "metrics.json").write_text('{"val/acc": 1, "val/loss": null, "output_dir": "a/b"}')
    assert finished_metrics(tmp_path) == {"val/acc": 1, "val/loss": None, "output_dir": "a/b"}
