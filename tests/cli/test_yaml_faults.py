"""Files of one's own with something wrong in them: one line names the file, the line and the column."""

import os

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

HEAD = b"# @package _global_\n"


@pytest.fixture
def compose_with(command, tmp_path):
    """Compose with an experiment of the given content in a folder of one's own."""

    def composed(content, choice="experiment"):
        folder = tmp_path / "mine" / choice
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "own.yaml").write_bytes(content)
        return command("train.py", "--config-dir", str(tmp_path / "mine"), f"{choice}=own", "--cfg", "job")

    return composed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"# about it\n" + HEAD + b"seed: 1\n", "own.yaml: its first line must be: # @package _global_"),
        (HEAD + b"seed: 1\n\tname: x\n", "own.yaml, line 3, column 1: found character '\\t' that cannot start any "),
        (HEAD + b"seed: 1\nseed: 2\n", "own.yaml, line 3, column 1: found duplicate key seed"),
        (HEAD + b"name: [a\n", "own.yaml, line 3, column 1: expected ',' or ']', but got '<stream end>'"),
        (HEAD + b"name: *nowhere\n", "own.yaml, line 2, column 7: found undefined alias 'nowhere'"),
        (HEAD + b"name: !!python/name:os.system\n", "own.yaml, line 2, column 7: could not determine a constructor"),
        (HEAD + b"seed: 1\n---\nseed: 2\n", "own.yaml, line 3, column 1: but found another document"),
        (HEAD + b"seed: 1\nname: d\xe9j\xe0\n", "own.yaml, line 3, byte 8: it is not UTF-8 (invalid continuation"),
        (HEAD + b"name: a\x00b\n", "special characters are not allowed in "),
        (b"\xef\xbb\xbf" + HEAD + b"seed: 1\n", "own.yaml begins with a byte order mark, which hides its first line"),
        (HEAD + b"- a\n", "own.yaml must hold keys and values, such as seed: 1, got a list"),
        (HEAD + b"just text\n", "own.yaml must hold keys and values, such as seed: 1, got a value"),
        (b"seed: 1\n", "own.yaml: its first line must be: # @package _global_"),
        (b"", "own.yaml: its first line must be: # @package _global_"),
        (HEAD + b"seeed: 1\n", "Key 'seeed' not in 'TrainSchema'"),
    ],
)
def test_the_place_of_a_fault_is_named(compose_with, content, message):
    assert message in compose_with(content).refusal


@pytest.mark.parametrize("content", [HEAD, HEAD + b"seed: 1\n", b"\n" + HEAD + "name: é\n".encode()])
def test_other_files_compose(compose_with, content):
    assert compose_with(content).code == 0


@settings(
    max_examples=int(os.environ.get("FUZZ_EXAMPLES", 15)),
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)
@given(
    content=st.one_of(
        st.binary(max_size=40), st.text("seed: 1\n\t-[]{}#&*!|>'\"%@`,?é", max_size=40).map(lambda text: text.encode())
    )
)
def test_any_content_composes_or_is_refused_in_one_line(compose_with, content):
    outcome = compose_with(HEAD + content)
    assert outcome.code == 0 or outcome.refusal
