"""Keys of jobs: what changes one, where there is none, and which files of a folder count."""

import os
from types import SimpleNamespace

import pytest
from omegaconf import OmegaConf

from cifar_lightning.config.invocation import FROM_PYTHON
from cifar_lightning.runs.folder import CONFIG, record
from cifar_lightning.runs.jobkeys import KEY, JobKeys, common_key, job_key, record_key

SOURCES = (("hydra", "pkg", "hydra.conf"), ("main", "file", "conf"), ("schema", "structured", ""))


@pytest.fixture
def node(tmp_path, monkeypatch):
    """Gives Hydra's node of a config that is composed from the folder conf."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "conf" / "model").mkdir(parents=True)
    (tmp_path / "conf" / "train.yaml").write_text("seed: 0")
    (tmp_path / "conf" / "model" / "small.yaml").write_text("width: 1")

    def make(*sources, typed=(), config_name="train"):
        return SimpleNamespace(
            runtime=SimpleNamespace(
                version="1.3.8",
                config_sources=[
                    SimpleNamespace(provider=provider, schema=kind, path=path)
                    for provider, kind, path in sources or SOURCES
                ],
            ),
            job=SimpleNamespace(config_name=config_name),
            overrides=SimpleNamespace(hydra=list(typed)),
        )

    return make


def test_a_key_changes_with_all_that_a_job_is_composed_from(node, tmp_path, monkeypatch):
    keys = [common_key(node())]
    assert common_key(node()) == keys[0]
    (tmp_path / "conf" / "README.txt").write_text("not read by Hydra, nor is oc.env in it")
    assert common_key(node()) == keys[0]
    keys.append(common_key(node(typed=["hydra.job.chdir=true"])))
    keys.append(common_key(node(config_name="other")))
    keys.append(common_key(node(*SOURCES, ("command-line", "file", "conf"))))
    (tmp_path / "conf" / "model" / "small.yaml").write_text("width: 2")
    keys.append(common_key(node()))
    (tmp_path / "conf" / "model" / "small.yaml").rename(tmp_path / "conf" / "model" / "large.yaml")
    keys.append(common_key(node()))
    (tmp_path / "conf" / "empty.yaml").write_text("")
    keys.append(common_key(node()))
    monkeypatch.setattr("cifar_lightning.runs.jobkeys.__version__", "9")
    keys.append(common_key(node()))
    keys += [job_key("a", ["seed=1", "tta=1"]), job_key("a", ["tta=1", "seed=1"]), job_key("b", ["seed=1", "tta=1"])]
    keys.append(job_key("a", ["seed=1"]))
    assert None not in keys
    assert len(set(keys)) == len(keys) == 12


@pytest.mark.parametrize(
    "source",
    [("hydra.searchpath in command-line", "file", "conf"), ("main", "pkg", "conf"), ("plugin", "file", "conf")],
)
def test_other_sources_have_no_key(node, source):
    assert common_key(node(*SOURCES, source)) is None


@pytest.mark.parametrize("text", ["model: ${oc.env:MODEL}", "- ../../elsewhere", "\xff", "x" * 2_000_000])
def test_files_that_do_not_tell_all_have_no_key(node, tmp_path, text):
    (tmp_path / "conf" / "model" / "small.yaml").write_bytes(text.encode("latin-1"))
    assert common_key(node()) is None


def test_what_is_not_read_has_no_key(node, tmp_path):
    os.mkfifo(tmp_path / "conf" / "pipe.yaml")
    assert common_key(node()) is None
    (tmp_path / "conf" / "pipe.yaml").unlink()
    assert common_key(node()) is not None
    (tmp_path / "conf" / "linked").symlink_to(tmp_path)
    assert common_key(node()) is None
    (tmp_path / "conf" / "linked").unlink()
    for number in range(1_000):
        (tmp_path / "conf" / f"{number}.txt").touch()
    assert common_key(node()) is None


@pytest.mark.parametrize("override", ["resume=auto", "model=${oc.env:MODEL}", "experiment=../../../tmp/mine"])
def test_overrides_that_do_not_tell_all_have_no_key(override):
    assert job_key("a", ["seed=0", override]) is None
    assert job_key("a", ["seed=0", "output_dir=../runs"]) is not None
    assert job_key(None, ["seed=0"]) is None


@pytest.fixture
def jobs(tmp_path):
    """The folder of a sweep with three jobs, whose keys are their numbers spelt out."""
    for number, key in enumerate(("zero", "one", "two")):
        record(tmp_path / str(number), OmegaConf.create({"seed": number}), FROM_PYTHON)
        record_key(tmp_path / str(number), key)
    return tmp_path


def test_a_job_is_found_in_its_own_folder_first(jobs):
    record(jobs / "3", OmegaConf.create({"seed": 1}), FROM_PYTHON)
    record_key(jobs / "3", "one")
    (jobs / "a file").touch()
    keys = JobKeys(jobs)
    assert [keys.folder_of("one", own) for own in ("0", "1", "3")] == [jobs / "1", jobs / "1", jobs / "3"]
    assert keys.folder_of("three", "1") is None
    assert JobKeys(jobs / "nowhere").folder_of("one", "1") is None


def test_a_key_counts_with_the_config_that_it_was_recorded_with(jobs):
    record(jobs / "1", OmegaConf.create({"seed": 7}), FROM_PYTHON)  # as by a run that took the folder over
    assert JobKeys(jobs).folder_of("one", "1") is None
    record_key(jobs / "1", "seven")
    assert JobKeys(jobs).folder_of("seven", "1") == jobs / "1"
    (jobs / "1" / CONFIG).unlink()
    assert JobKeys(jobs).folder_of("seven", "1") is None


@pytest.mark.parametrize("content", [b"", b"two", b"two two two", b"\xff", b"two " + b"0" * 64, b"two " * 1_000_000])
def test_key_files_of_something_else(jobs, content):
    (jobs / "1" / KEY).write_bytes(content)
    assert JobKeys(jobs).folder_of("one", "1") is None
    assert JobKeys(jobs).folder_of("two", "1") == jobs / "2"


def test_a_pipe_in_the_place_of_a_key_file(jobs):
    (jobs / "1" / KEY).unlink()
    os.mkfifo(jobs / "1" / KEY)
    assert JobKeys(jobs).folder_of("one", "1") is None


def test_a_key_that_cannot_be_written_stops_nothing(jobs):
    (jobs / "1" / KEY).unlink()
    (jobs / "1" / KEY).mkdir()
    record_key(jobs / "1", "one")
    record_key(jobs / "nowhere", "one")
    assert JobKeys(jobs).folder_of("one", "1") is None


def test_a_key_is_written_where_it_is_another(jobs):
    before = (jobs / "1" / KEY).stat().st_ino
    record_key(jobs / "1", "one")
    record_key(jobs / "1", None)
    assert (jobs / "1" / KEY).stat().st_ino == before
