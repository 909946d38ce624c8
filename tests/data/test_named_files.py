"""Which image files are meant by a file, a folder or a pattern."""

import os

import pytest

from cifar_lightning.data.named_files import named_files


@pytest.fixture
def photos(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for path in ("photos/b.jpg", "photos/a.PNG", "photos/day 1/c.webp", "photos/Thumbs.db", "photos/.hidden.png"):
        os.makedirs(os.path.dirname(path), exist_ok=True)
        (tmp_path / path).write_bytes(b"x")
    return tmp_path / "photos"


@pytest.mark.parametrize(
    ("names", "expected"),
    [
        (["photos"], ["photos/a.PNG", "photos/b.jpg", "photos/day 1/c.webp"]),
        (["photos/"], ["photos/a.PNG", "photos/b.jpg", "photos/day 1/c.webp"]),
        (["photos/*.jpg"], ["photos/b.jpg"]),
        (["photos/*"], ["photos/a.PNG", "photos/b.jpg", "photos/day 1/c.webp"]),
        (["photos/**/*.*"], ["photos/a.PNG", "photos/b.jpg", "photos/day 1/c.webp"]),
        (
            ["photos/b.jpg", "photos", "./photos/b.jpg"],
            [*("photos/b.jpg", "photos/a.PNG"), "photos/day 1/c.webp", "./photos/b.jpg"],
        ),
    ],
)
def test_files_folders_and_patterns(photos, names, expected):
    assert named_files(names) == (expected, {})


def test_a_name_that_looks_like_a_pattern_is_a_file_where_there_is_one(photos):
    (photos / "IMG [1].jpg").write_bytes(b"x")
    assert named_files(["photos/IMG [1].jpg"]) == (["photos/IMG [1].jpg"], {})


def test_what_cannot_be_an_image_is_among_the_files(photos):
    (photos / "notes.txt").write_text("x")
    os.mkfifo(photos / "pipe.png")
    (photos / "gone.png").symlink_to("nowhere")
    expected = {
        "photos/notes.txt": "not an image, by its extension",
        "photos/pipe.png": "not a file",
        "photos/gone.png": "No such file or directory",
    }
    files, problems = named_files(["photos"])
    assert problems == expected
    assert files == sorted(["photos/a.PNG", "photos/b.jpg", "photos/day 1/c.webp", *expected])
    by_name = named_files(["photos/pipe.png", "photos/gone.png"])
    faults = {"photos/pipe.png": "not a file", "photos/gone.png": "a link to nothing"}
    assert by_name == (list(faults), faults)
    assert named_files(["photos/notes.txt"]) == (["photos/notes.txt"], {})  # its content decides, once it is named


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("nix", r"images=nix: there is no such file or folder; several are given as a list, images=\[a\.jpg,b\.jpg\]"),
        ("nix/*.jpg", r"images=nix/\*\.jpg: the pattern matches no file"),
        ("empty", r"images=empty is a folder without images \(files that end in \.png"),
        ("https://a.b/c.jpg", "is an address: download the pictures first"),
        ("\x1b", r"images=\\x1b: there is no such file"),
    ],
)
def test_names_that_stand_for_nothing(photos, name, message):
    (photos.parent / "empty").mkdir()
    with pytest.raises(ValueError, match=message):
        named_files(["photos/b.jpg", name])
