"""A run's folder that was changed by hand: the answer is a run or one line with exit code 2, and nothing is lost."""

import os
import shutil
from pathlib import Path

from conftest import SMALL, TINY
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

FILES = (
    *("checkpoints/last.ckpt", "metrics.json", "metrics.csv", "train.log", ".lock"),
    *(".hydra/config.yaml", ".hydra/overrides.yaml", ".hydra/hydra.yaml", "checkpoints", ".hydra"),
)
CONTENTS = (
    *(b"", b"\0" * 9, b"\xff\xfe\xfd", b"null", b"[]", b"{}", b"[1, {}]", b'{"steps": "x"}', b"{a: &x [*x]}", b"\t- a"),
    *(b"a: ${oc.env:HOME}", b"- seed=1\n- seed=2", b"- +hydra.run.dir=x", b"- 3", b"step,epoch\n1", b"x" * 2_000_000),
)
ACTIONS = ("remove", "write", "cut", "flip", "append", "folder", "link", "nowhere")


def change(folder: Path, name: str, action: str, content: bytes, place: float) -> None:
    path = folder / name
    before = path.read_bytes() if path.is_file() else b""
    if action in ("cut", "flip", "append") and path.is_file():
        at = int(place * len(before))
        flipped = before[:at] + bytes([before[at] ^ 255]) + before[at + 1 :] if at < len(before) else before
        path.write_bytes({"cut": before[:at], "flip": flipped, "append": before + content}[action])
        return
    if not path.parent.is_dir():
        return
    if path.is_dir():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)
    if action == "remove":
        return
    if action == "folder":
        path.mkdir()
    elif action in ("link", "nowhere"):
        path.symlink_to(folder / ("metrics.json" if action == "link" and name != "metrics.json" else "nowhere"))
    else:
        path.write_bytes(content)


def contents(folder: Path) -> dict[str, bytes]:
    """Checkpoints and their records, which must not be lost where a command refuses."""
    paths = [path for path in sorted(folder.rglob("*")) if path.is_file() and not path.name.endswith((".log", ".lock"))]
    return {str(path.relative_to(folder)): path.read_bytes() for path in paths}


@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", 20)),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(data=st.data())
def test_a_changed_folder(data, ended, command, tmp_path):
    folder = tmp_path / "changed"
    shutil.rmtree(folder, ignore_errors=True)
    shutil.copytree(ended, folder)
    changes = data.draw(
        st.lists(
            st.tuples(
                st.sampled_from(FILES),
                st.sampled_from(ACTIONS),
                st.sampled_from(CONTENTS),
                st.floats(0, 1),
            ),
            min_size=1,
            max_size=2,
        )
    )
    for name, action, content, place in changes:
        change(folder, name, action, content, place)
    asked = data.draw(
        st.sampled_from(
            [
                ("train.py", f"resume={folder}", "trainer.max_epochs=2", TINY),
                ("train.py", f"output_dir={folder}", "resume=auto", *SMALL, "trainer.max_epochs=1"),
                ("train.py", f"output_dir={folder}", *SMALL, "trainer.max_epochs=1"),
                ("train.py", "-m", "seed=0,1", f"output_dir={folder}", *SMALL, "trainer.max_epochs=1"),
                ("evaluate.py", f"ckpt={folder}/checkpoints/last.ckpt"),
            ]
        )
    )
    before = contents(folder)
    outcome = command(*asked, tiny=TINY not in asked)
    assert outcome.code in (0, 2), (changes, asked, outcome.err)
    assert "Traceback" not in outcome.out + outcome.err, (changes, asked)
    if outcome.code == 2:
        assert len(outcome.err.splitlines()) == 1, (changes, asked, outcome.err)
        assert contents(folder).items() >= before.items(), (changes, asked)
