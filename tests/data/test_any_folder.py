"""Random folders: the answer is exactly the images in them, or one line that names what is wrong."""

import io
import itertools
import os
import tempfile
from collections.abc import Iterator
from pathlib import Path

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st
from pictures import noise
from PIL import Image, ImageOps

from cifar_lightning.data.folder import ImageFolder


def saved(image: Image.Image, kind: str, orientation: int = 1, **arguments) -> bytes:
    file = io.BytesIO()
    exif = Image.Exif()
    exif[0x0112] = orientation
    if kind in ("JPEG", "PNG", "WEBP", "TIFF"):
        arguments["exif"] = exif
    image.save(file, kind, **arguments)
    return file.getvalue()


def images() -> Iterator[tuple[str, bytes]]:
    """Extensions and contents of images of many kinds."""
    square, wide, tall = (Image.fromarray(noise(*size)) for size in ((32, 32), (9, 21), (40, 31)))
    plain = io.BytesIO()
    square.save(plain, "PNG")
    yield ".png", plain.getvalue()
    for mode in ("1", "L", "LA", "P", "RGBA", "I;16"):
        yield ".png", saved(wide.convert(mode) if mode != "I;16" else wide.convert("I").convert(mode), "PNG")
    for orientation in range(10):
        yield ".JPG", saved(tall, "JPEG", orientation)
        yield ".webp", saved(wide, "WEBP", orientation, lossless=True)
    for kind, extension in (("JPEG", ".jfif"), ("TIFF", ".tif"), ("BMP", ".bmp"), ("PPM", ".ppm"), ("GIF", ".gif")):
        yield extension, saved(tall, kind, 6)
        yield ".png", saved(wide, kind, 3)
    for size in ((1, 1), (1, 70), (70, 1)):
        yield ".png", saved(Image.fromarray(noise(*size)), "PNG")
    yield ".jpeg", saved(wide.convert("CMYK"), "JPEG")


IMAGES = list(images())
LITTER = (
    *("@eaDir/0.png", "__MACOSX/._0.png", "$RECYCLE.BIN/0.png", "#recycle/0.png", ".AppleDouble/0.png"),
    *("Thumbs.db", "desktop.ini", ".DS_Store", "._0.png", "Icon\r"),
)
NO_IMAGES = (
    *((".txt", b"notes"), (".jpg", b"<!doctype html>"), (".png", b""), (".jpg", bytes(100)), ("", b"x")),
    *((".heic", b"x"), (".jpg", b"\0\0\0\x1cftypavif\0\0\0\0avifmif1miaf"), (".gif", b"GIF89a")),
    *((".tif", b"II*\0\x08\0\0\0\xff\xff"), (".ppm", b"P6 99999 99999 255\n")),
    *((".png", IMAGES[0][1][:700]), (".JPG", IMAGES[7][1][:300])),
)
NAMES = st.text(st.sampled_from("aAbé\u0301ñ中 \t\n\x1b\u200b\udce9\udcff-_#@$:;%'\"[]"), min_size=1, max_size=5).map(
    lambda name: os.fsdecode(os.fsencode(name))  # two characters that are not UTF-8 may be one that is
)


class Plan:
    """Files by their paths below the root, and what is to come of them."""

    def __init__(self) -> None:
        self.contents: dict[str, bytes] = {}
        self.images: dict[str, bytes] = {}
        self.bad: set[str] = set()
        self.unknown = False  # whether there are files that may be read or not

    def __repr__(self) -> str:
        return f"Plan of {sorted(self.contents)}, bad: {sorted(self.bad)}"


def can_be_a_class(name: str) -> bool:
    return not any("\ud800" <= c <= "\udfff" for c in name) and any(c.isprintable() and not c.isspace() for c in name)


@st.composite
def plans(draw) -> Plan:
    plan = Plan()
    classes = draw(st.lists(NAMES, min_size=1, max_size=3, unique=True))
    splits = ["train", "test", *draw(st.sampled_from([[], ["val"], ["valid"], ["dev"]]))]
    for split in splits:
        for name in classes:
            folder = f"{split}/{name}"
            if not can_be_a_class(name):
                plan.bad.add(folder)
            add_image(draw, plan, folder, "first")
            for number in range(draw(st.integers(0, 2))):
                add_image(draw, plan, f"{folder}/deep" if draw(st.booleans()) else folder, f"{draw(NAMES)}{number}")
    for _ in range(draw(st.integers(0, 3))):
        add_something(draw, plan, draw(st.sampled_from(splits)), draw(st.sampled_from(classes)))
    return plan


def add_image(draw, plan: Plan, folder: str, stem: str) -> None:
    extension, content = draw(st.sampled_from(IMAGES))
    path = f"{folder}/{stem}{extension}"
    plan.contents[path] = plan.images[path] = content


def add_something(draw, plan: Plan, split: str, name: str) -> None:
    kind = draw(st.sampled_from(["litter", "litter", "litter", "no image", "loose", "other class", "changed"]))
    if kind == "litter":
        level = draw(st.sampled_from([".", split, f"{split}/{name}", f"{split}/{name}/deep"]))
        plan.contents[f"{level}/{draw(st.sampled_from(LITTER))}"] = b"no image"
    elif kind == "no image":
        extension, content = draw(st.sampled_from(NO_IMAGES))
        path = f"{split}/{name}/no image{extension}"
        plan.contents[path] = content
        plan.bad.add(path)
    elif kind == "other class" and split != "train":
        path = f"{split}/other/0.png"
        plan.contents[path] = IMAGES[0][1]
        plan.bad.add(f"{split}/other")
        if split == "test":
            plan.images[path] = IMAGES[0][1]
    elif kind != "changed":
        plan.contents[f"{split}/loose.png"] = IMAGES[0][1]
        plan.bad.add(f"{split}/loose.png")
    else:
        extension, content = draw(st.sampled_from(IMAGES))
        place, value = draw(st.integers(0, len(content) - 1)), draw(st.integers(0, 255))
        changed = bytearray(content)
        changed[place] = value
        plan.contents[f"{split}/{name}/changed{extension}"] = bytes(changed)
        plan.unknown = True


def write_plan(plan: Plan, root: Path) -> None:
    for path, content in plan.contents.items():
        (root / path).parent.mkdir(parents=True, exist_ok=True)
        (root / path).write_bytes(content)


def by_pillow(content: bytes) -> np.ndarray:
    with Image.open(io.BytesIO(content)) as image:
        image = ImageOps.exif_transpose(image)
        grey = image.convert("I").point(lambda value: value * (1 / 256)).convert("L") if image.mode == "I;16" else image
    rgb = grey.convert("RGB")
    return np.asarray(ImageOps.fit(rgb, (32, 32), Image.Resampling.BILINEAR) if rgb.size != (32, 32) else rgb)


def expected(plan: Plan, *, train: bool) -> tuple[list[np.ndarray], list[str]]:
    """Pixels and classes of the images, in their order."""
    splits = ("train",) if train else ("test",)
    if train:
        splits += tuple({path.partition("/")[0] for path in plan.images} & {"val", "valid", "dev"})
    paths = [path for split in splits for path in sorted(plan.images, key=in_order) if path.startswith(f"{split}/")]
    return [by_pillow(plan.images[path]) for path in paths], [path.split("/")[1] for path in paths]


def in_order(path: str) -> tuple[str, str]:
    return path.split("/")[1], path


@settings(max_examples=int(os.environ.get("FUZZ_EXAMPLES", 25)), deadline=None, derandomize=True)
@given(plan=plans())
def test_any_folder(plan):
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "root"
        write_plan(plan, root)
        for train, pair in itertools.product((True, False, True), (False, True)):  # the last from the cache
            own = {path for path in plan.bad if path.startswith("test/") != train}
            bad = plan.bad if pair else own - {"test/other"}  # which is a class of test/ by itself
            try:
                data = ImageFolder(root, train=train, pair=pair)
            except ValueError as refused:
                check_message(str(refused), bad, unknown=plan.unknown)
            else:
                assert not own & bad
                check_data(data, plan, train=train)


def check_message(message: str, bad: set[str], *, unknown: bool) -> None:
    assert bad or unknown, message
    assert message.isprintable()
    message.encode()
    if len(bad) <= 6:
        for path in bad:
            if path.rpartition("/")[0] in bad:
                continue  # its class is named
            assert "".join(c if c.isprintable() else c.encode("unicode_escape").decode() for c in path) in message


def check_data(data: ImageFolder, plan: Plan, *, train: bool) -> None:
    if not plan.unknown:
        pixels, names = expected(plan, train=train)
        assert [data.classes[target] for target in data.targets] == names
        np.testing.assert_array_equal(data.data, np.stack(pixels))
