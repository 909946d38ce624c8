"""Curves are read again from what the loggers write; files of others cost no more than their curves."""

import os
import struct

import pytest
import torch
from torch.utils.tensorboard import SummaryWriter

from cifar_lightning.runs import curves
from cifar_lightning.runs.curves import CURVES, read_curves


def write_events(folder, points, **options):
    with SummaryWriter(folder, **options) as writer:
        for name, step, value in points:
            writer.add_scalar(name, value, step)
    return max(folder.glob("events*"), key=os.path.getmtime)


def test_curves_of_a_run_are_those_that_its_loggers_wrote(run):
    found = {}
    for name in ("csv", "tensorboard"):
        _, folder = run("callbacks=none", f"logger={name}", "data.val_size=20")
        found[name] = read_curves(folder, CURVES)
    num_points = {name: len(points) for name, points in found["csv"].items()}
    assert num_points == {"train/loss": 4, "train/acc": 4, "val/loss": 2, "val/acc": 2}
    for name, points in found["csv"].items():
        assert [step for step, _ in found["tensorboard"][name]] == [step for step, _ in points]
        assert [y for _, y in found["tensorboard"][name]] == pytest.approx([y for _, y in points], rel=1e-5)


def test_a_resumed_run_has_one_value_at_each_step(tmp_path):
    first = write_events(tmp_path, [("val/acc", step, 0.1 * step) for step in (1, 2, 3)])
    first.rename(tmp_path / "events.out.tfevents.0000000001.x")
    write_events(tmp_path, [("val/acc", 2, 0.9), ("val/acc", 4, 0.5)], purge_step=2)
    found = read_curves(tmp_path, ["val/acc", "train/acc"])
    assert {name: [(step, round(y, 6)) for step, y in points] for name, points in found.items()} == {
        "val/acc": [(1, 0.1), (2, 0.9), (4, 0.5)]
    }


def test_pictures_and_values_that_are_not_finite_are_left_out(tmp_path):
    with SummaryWriter(tmp_path) as writer:
        writer.add_scalar("val/acc", float("nan"), 1)
        writer.add_image("val/acc", torch.rand(3, 64, 64, generator=torch.Generator().manual_seed(0)), 2)
        writer.add_text("val/acc", "x" * 10_000, 3)
        writer.add_scalar("val/acc", 0.5, 4)
        writer.add_scalar("val/acc", 0.5, -7)
    assert read_curves(tmp_path, ["val/acc"]) == {"val/acc": [(4, 0.5)]}


def damaged(content: bytes) -> dict[str, bytes]:
    return {
        "cut": content[:-5],
        "empty": b"",
        "no records": b"hello, this is no event file at all" * 10,
        "endless record": struct.pack("<Q", 2**63) + content,
        "no protocol buffer": struct.pack("<Q", 8) + b"crc!" + b"\xff" * 8 + b"crc!" + content,
    }


@pytest.mark.parametrize("kind", damaged(b""))
def test_damaged_event_files_cost_their_own_curves_alone(tmp_path, kind, caplog):
    source = tmp_path / "source"
    content = write_events(source, [("val/acc", 1, 0.5), ("val/acc", 2, 0.75)]).read_bytes()
    (tmp_path / "events.out.tfevents.0").write_bytes(damaged(content)[kind])
    (tmp_path / "metrics.csv").write_text("step,train/acc\n5,0.25\n")
    found = read_curves(tmp_path, CURVES)
    assert found["train/acc"] == [(5, 0.25)]
    assert found.get("val/acc", []) == ([(1, 0.5)] if kind == "cut" else [])


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("step,val/acc\n1,0.5\n2,\n3,0.75\n", [(1, 0.5), (3, 0.75)]),
        ("step,val/acc\n1,0.5\n2,many\n3,0.75\n", [(1, 0.5)]),  # from where it is damaged
        ("step,val/acc\n1,0.5,7,8\n", [(1, 0.5)]),
        ("val/acc\n0.5\n", None),
        ("step,val/acc\n1,inf\n1e3,1\n", None),
        ("\x00\ufffe", None),
    ],
)
def test_tables_of_others(tmp_path, text, expected):
    (tmp_path / "metrics.csv").write_text(text)
    assert read_curves(tmp_path, ["val/acc"]).get("val/acc") == expected


def test_no_folder_no_pipe_and_no_endless_file(tmp_path, monkeypatch):
    assert read_curves(tmp_path / "nothing", CURVES) == {}
    os.mkfifo(tmp_path / "metrics.csv")
    (tmp_path / "events.out.tfevents.1").mkdir()
    (tmp_path / "events.out.tfevents.2").symlink_to("/dev/zero")
    assert read_curves(tmp_path, CURVES) == {}
    monkeypatch.setattr(curves, "MAX_BYTES", 10)
    (tmp_path / "metrics.csv").unlink()
    (tmp_path / "metrics.csv").write_text("step,val/acc\n1,0.5\n")
    assert read_curves(tmp_path, CURVES) == {}
