"""Lock files, also on file systems that have no locks."""

import errno
import fcntl
import logging
import os
import signal
import subprocess
import sys

import pytest

from cifar_lightning.errors import UserError
from cifar_lightning.locks import InUse, held
from cifar_lightning.runs.folder import LOCK, claimed

HOLD = """
import fcntl, os, sys
from pathlib import Path
def without(*arguments):
    raise OSError(int(sys.argv[2]), "no locks")
if sys.argv[2] != "0":
    fcntl.flock = without
from cifar_lightning.locks import held
with held(Path(sys.argv[1])):
    print("held", flush=True)
    sys.stdin.read()
"""


@pytest.fixture
def without_locks(monkeypatch):
    """Have the system answer as for a file system without locks; gives what sets the answer."""

    def answers(code):
        def flock(*arguments):
            raise OSError(code, os.strerror(code))

        monkeypatch.setattr(fcntl, "flock", flock)

    return answers


def test_a_lock_is_for_one(tmp_path):
    path = tmp_path / ".lock"
    with held(path):
        with pytest.raises(InUse, match=f"process {os.getpid()}"), held(path):
            pass
        assert path.read_text() == str(os.getpid())
    with held(path):
        pass


@pytest.mark.parametrize("code", [errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS])
def test_without_locks_a_file_says_that_it_is_in_use(code, without_locks, tmp_path, caplog):
    without_locks(code)
    path = tmp_path / ".lock"
    with held(path):
        assert "is on a file system without locks" in caplog.text
        with (
            pytest.raises(InUse, match=rf"process {os.getpid()}; if it runs on no machine any more, remove .*\.owner$"),
            held(path),
        ):
            pass
    assert not path.with_name(".lock.owner").exists()
    with held(path):
        pass


def test_other_errors_are_no_want_of_locks(without_locks, tmp_path):
    without_locks(errno.EIO)
    with pytest.raises(OSError, match="Input/output error"), held(tmp_path / ".lock"):
        pass


@pytest.mark.parametrize("code", [0, errno.ENOLCK])
def test_a_killed_process_holds_nothing(code, without_locks, tmp_path):
    if code:
        without_locks(code)
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path), str(code)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        with pytest.raises(InUse, match=f"process {holder.pid}"), held(path):
            pass
        holder.send_signal(signal.SIGKILL)
    with held(path):
        pass


def test_a_full_disk_takes_no_lock_away(tmp_path, monkeypatch):
    def full(*arguments, **options):
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))

    monkeypatch.setattr("cifar_lightning.locks.opener", full)
    with held(tmp_path / ".lock"), pytest.raises(InUse, match="another process"), held(tmp_path / ".lock"):
        pass


def test_who_waits_is_told_for_whom(tmp_path):
    path = tmp_path / ".lock"
    command = [sys.executable, "-c", HOLD, str(path), "0"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as holder:
        assert holder.stdout.readline() == "held\n"
        told = []
        with held(path, waits=lambda owner: (told.append(owner), holder.stdin.close())):
            assert told == [f"process {holder.pid}"]


def test_a_run_needs_no_locks(without_locks, tmp_path, caplog):
    without_locks(errno.ENOLCK)
    caplog.set_level(logging.WARNING)
    with claimed(tmp_path / "run"):
        assert caplog.text.count("without locks") == 1
        in_use = r"is in use by process .*; if it runs on no machine any more, remove"
        with pytest.raises(UserError, match=in_use), claimed(tmp_path / "run"):
            pass
    with claimed(tmp_path / "run"):
        assert (tmp_path / "run" / LOCK).exists()
