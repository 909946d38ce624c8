"""The console: what cannot be shown is not shown, and the run continues."""

import errno
import io
import logging
import os
import re
import subprocess
import sys
import warnings
from pathlib import Path

import pytest
from conftest import ROOT
from hypothesis import given, settings
from hypothesis import strategies as st
from lightning.pytorch.plugins.environments import SLURMEnvironment
from rich.console import Console

from cifar_lightning.report.console import Lines, LogFile, on_screen, say, screens
from cifar_lightning.report.tables import log_table

log = logging.getLogger("cifar_lightning.test")


class Full(io.StringIO):
    """A stream to a full disk."""

    def write(self, text: str) -> int:
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))


def everything() -> None:
    """All ways that lead to standard output, where nobody has set logging up."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(logging.getLogger("cifar_lightning"), "propagate", False)  # to pytest's own handlers
        with on_screen():
            log.info("a line, 5 ± 1 % of 猫")
            log_table("title", [("é", "1")])
            print("printed ✗")
            Console(file=sys.stdout).print("by rich …")
            assert not sys.stdout.isatty()
            sys.stdout.flush()


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "cp437", "utf-8", "utf-16"])
def test_an_encoding_that_lacks_characters(monkeypatch, encoding):
    written = io.BytesIO()
    monkeypatch.setattr(sys, "stdout", io.TextIOWrapper(written, encoding=encoding))
    everything()
    shown = written.getvalue().decode(encoding)
    assert "a line, 5 " in shown
    assert "printed " in shown
    table = shown[shown.index("title") :]
    if encoding in ("utf-8", "utf-16"):
        assert "│ é │ 1 │" in table
        assert "5 ± 1 % of 猫" in shown
    else:
        assert re.search(r"of \\u732b", shown)
        assert re.search(r"[|│] (é|\\xe9) [|│] 1 [|│]", table)
    if encoding == "ascii":
        assert re.search(r"\+-+\+-+\+\n\| \\xe9 \| 1 \|", table)


@pytest.mark.parametrize("name", ["stdout", "stderr"])
def test_closed_streams(monkeypatch, name):
    monkeypatch.setattr(sys, name, None)
    everything()
    say("nobody hears", "stderr")
    assert getattr(sys, name) is None


def test_a_stream_that_was_closed_later(monkeypatch, capsys):
    closed = io.StringIO()
    closed.close()
    monkeypatch.setattr(sys, "stdout", closed)
    everything()
    assert capsys.readouterr().err == ""


def test_a_full_disk_is_told_once(monkeypatch, capsys):
    monkeypatch.setattr(sys, "stdout", Full())
    everything()
    said = capsys.readouterr().err
    assert said.startswith("stdout cannot be written to ([Errno 28] ")
    assert said.count("\n") == 1


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_nothing_is_left_to_fail_at_the_end(monkeypatch, capsys):
    with open("/dev/full", "w", encoding="utf-8") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        with screens():
            print("not flushed")
        stream.write("more")  # leads nowhere now
    assert capsys.readouterr().err.count("\n") == 1


def test_a_run_continues_in_silence_when_nobody_reads_what_it_prints(monkeypatch, capsys):
    reader, writer = os.pipe()
    os.close(reader)
    with os.fdopen(writer, "w") as stream:
        monkeypatch.setattr(sys, "stdout", stream)
        everything()
    assert capsys.readouterr().err == ""


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="no /dev/full")
def test_a_log_file_on_a_full_disk_is_told_once(capsys):
    handler = LogFile("/dev/full")
    for _ in range(3):
        handler.handle(logging.makeLogRecord({"msg": "line"}))
    handler.close()
    said = capsys.readouterr().err
    assert said.startswith("/dev/full cannot be written to ([Errno 28] ")
    assert said.count("\n") == 1


def test_a_log_file_without_a_folder_is_told_once(capsys, tmp_path):
    handler = LogFile(str(tmp_path / "nowhere" / "train.log"), delay=True)
    for _ in range(3):
        handler.handle(logging.makeLogRecord({"msg": "line"}))
    said = capsys.readouterr().err
    assert re.fullmatch(r"\S+train\.log cannot be written to \(\[Errno 2\] .*\n", said)


@pytest.mark.parametrize("kind", ["link", "pipe"])
def test_a_log_file_is_opened_through_no_link(kind, capsys, tmp_path):
    outside, path = tmp_path / "profile", tmp_path / "train.log"
    outside.write_text("mine")
    path.symlink_to(outside) if kind == "link" else os.mkfifo(path)
    handler = LogFile(str(path), delay=True)
    for _ in range(3):
        handler.handle(logging.makeLogRecord({"msg": "rm -r"}))
    said = capsys.readouterr().err
    assert re.fullmatch(r"\S+train\.log cannot be written to \(.*: there must be a plain file or none\): .*\n", said)
    assert outside.read_text() == "mine"


def test_a_log_file_with_a_second_name_is_continued_as_a_copy(tmp_path):
    outside, path = tmp_path / "snapshot", tmp_path / "train.log"
    outside.write_text("before\n")
    os.link(outside, path)
    handler = LogFile(str(path), delay=True)
    handler.handle(logging.makeLogRecord({"msg": "after"}))
    handler.close()
    assert (outside.read_text(), path.read_text()) == ("before\n", "before\nafter\n")
    assert sorted(os.listdir(tmp_path)) == ["snapshot", "train.log"]


def test_a_log_file_is_in_utf_8(tmp_path, monkeypatch):
    monkeypatch.setattr("locale.getpreferredencoding", lambda *args: "ascii")
    handler = LogFile(str(tmp_path / "train.log"))
    handler.setFormatter(Lines("%(message)s"))
    handler.handle(logging.makeLogRecord({"msg": "%s", "args": ("猫 \udcff",)}))
    handler.close()
    assert (tmp_path / "train.log").read_bytes() == "猫 \\udcff\n".encode()


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", 60)), derandomize=True, deadline=None)
@given(name=st.one_of(st.text(), st.text("\x1b[\r\n\t\x07\x9b\u202e\u2028\ud800%s", max_size=8)))
def test_a_name_is_one_line_that_commands_no_terminal(name):
    lines = Lines("%(message)s")
    for argument in (name, Path(name.replace("\0", "")), ValueError(name)):
        shown = lines.format(logging.makeLogRecord({"msg": "run %s: %d", "args": (argument, 3)}))
        assert shown.isprintable()
        assert shown.endswith(": 3")
    as_message = lines.format(logging.makeLogRecord({"msg": name}))
    assert as_message.replace("\n", "").replace("\t", "").isprintable()


def test_a_traceback_keeps_its_lines():
    try:
        raise ValueError("\x1b")
    except ValueError:
        record = logging.makeLogRecord({"msg": "failed", "exc_info": sys.exc_info()})
    first, *others = Lines("%(message)s").format(record).split("\n")
    assert first == "failed"
    assert others[0] == "Traceback (most recent call last):"
    assert others[-1] == r"ValueError: \x1b"


def test_what_is_said_is_one_safe_line(capsys):
    say("name=\x1b[31m\n", "stderr")
    say("é")
    assert capsys.readouterr() == ("é\n", "name=\\x1b[31m\\n\n")


def test_streams_are_put_back(monkeypatch):
    out, err = sys.stdout, sys.stderr
    with screens():
        assert sys.stdout is not out
        inner = sys.stdout
        with screens():
            assert sys.stdout is inner
    assert (sys.stdout, sys.stderr) == (out, err)


@pytest.mark.skipif(os.name != "posix", reason="closes descriptors as a shell does")
def test_no_file_takes_the_place_of_a_closed_stream(tmp_path):
    code = "import sys; from cifar_lightning.report.console import screens\n"
    code += "with screens(): file = open(sys.argv[1], 'w'); print(file.fileno(), file=file)"
    line = ["sh", "-c", '"$0" -c "$1" "$2" <&- >&- 2>&-', sys.executable, code, str(tmp_path / "number")]
    subprocess.run(line, cwd=ROOT, check=True)
    assert int((tmp_path / "number").read_text()) > 2


def test_where_there_is_slurm_nobody_is_told_to_use_it(tmp_path, monkeypatch):
    (tmp_path / "srun").touch(mode=0o755)
    monkeypatch.setenv("PATH", str(tmp_path))
    warnings.simplefilter("error")
    with pytest.raises(UserWarning, match="The `srun` command is available on your system but is not used"):
        SLURMEnvironment.detect()
    with on_screen():
        assert not SLURMEnvironment.detect()
