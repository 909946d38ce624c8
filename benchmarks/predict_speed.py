"""Time to predict pictures: predict.py beside Pillow on all cores, and for one picture beside importing the libraries.

    python benchmarks/predict_speed.py               # 1,000 JPEGs of 500x375, the tutorial's network, five rounds
    python benchmarks/predict_speed.py --ckpt logs/speedrun/<time>/checkpoints/last.ckpt

Pictures are written once into a temporary folder, so that all contenders find them in the system's file cache. Each
contender runs in a process of its own; contenders take turns, and a ratio compares two times of one round.

- "Pillow": a process per core opens the pictures, crops and resizes them to 32x32. Its clock starts when the processes
  are there.
- "predict": ``commands.predict.predict`` from the settings to the written files; its clock starts after the imports.
- "import": ``import torch, lightning`` in a new process, from start to end.
- "one picture": ``python predict.py`` for one picture, from start to end.
"""

import argparse
import json
import multiprocessing
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from statistics import median

from harness import ROOT, in_process, quick_checkpoint, smooth_images, spread
from PIL import Image, ImageOps
from rich.console import Console
from rich.table import Table

SIZE = (500, 375)
SIDE = 32
CONTENDERS = ("Pillow", "predict", "import", "one picture")
PAIRS = {"predict": "Pillow", "one picture": "import"}
"""What each figure is compared with."""


def write(folder: Path, num: int) -> None:
    """Write JPEGs of some 40 kB each, as photographs of that size have."""
    for number, pixels in enumerate(smooth_images(num, size=SIZE, blots=(20, 15))):
        Image.fromarray(pixels).save(folder / f"{number:05}.jpg", quality=88)


def resized(path: str) -> int:
    """What a picture takes with Pillow alone."""
    with Image.open(path) as image:
        square = ImageOps.fit(image.convert("RGB"), (SIDE, SIDE), method=Image.Resampling.BILINEAR)
        return len(square.tobytes())


def run(contender: str, pictures: Path, ckpt: Path) -> float:
    """Seconds of a contender, in this process or in one that it starts."""
    paths = sorted(map(str, pictures.iterdir()))
    if contender == "Pillow":
        with multiprocessing.get_context("fork").Pool() as pool:
            pool.map(resized, paths[:8])
            started = time.perf_counter()
            pool.map(resized, paths, chunksize=16)
            return time.perf_counter() - started
    if contender == "predict":
        from cifar_lightning.commands.predict import predict
        from cifar_lightning.config.schema import compose

        with tempfile.TemporaryDirectory() as folder:
            cfg = compose(f"ckpt={ckpt}", f"images={pictures}", f"output_dir={folder}", config_name="predict")
            started = time.perf_counter()
            predict(cfg)
            return time.perf_counter() - started
    if contender == "import":
        command = [sys.executable, "-c", "import torch, lightning"]
    else:
        command = [sys.executable, str(ROOT / "predict.py"), f"ckpt={ckpt}", f"images={paths[0]}"]
    started = time.perf_counter()
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL)
    return time.perf_counter() - started


def measure(contender: str, pictures: Path, ckpt: Path) -> float:
    """Seconds of a contender in a fresh process."""
    options = ["--contender", contender, "--pictures", str(pictures), "--ckpt", str(ckpt)]
    return float(in_process(__file__, *options))


def table(rounds: list[dict[str, float]], num: int) -> Table:
    """Medians over the rounds, and the ratios of what is compared."""
    shown = Table(title=f"{num:,} JPEGs of {SIZE[0]}x{SIZE[1]}, n = {len(rounds)}")
    shown.add_column("contender")
    for name in ("s", "from ... to", "pictures/s", "of the other's seconds", "from ... to"):
        shown.add_column(name, justify="right")
    for contender in rounds[0]:
        seconds = [by_name[contender] for by_name in rounds]
        cells = [*spread(seconds)]
        cells.append(f"{num / median(seconds):,.0f}" if contender in ("Pillow", "predict") else "")
        if contender in PAIRS:
            ratios = [by_name[contender] / by_name[PAIRS[contender]] for by_name in rounds]
            middle, ends = spread(ratios)
            cells += [f"{middle} x {PAIRS[contender]}", ends]
        shown.add_row(contender, *cells)
    return shown


def main() -> None:
    """Write the pictures, run the contenders in turn and print their table."""
    formatter = argparse.RawDescriptionHelpFormatter
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=formatter)
    parser.add_argument("--num", type=int, default=1_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--ckpt", type=Path)
    parser.add_argument("--contender", help=argparse.SUPPRESS)
    parser.add_argument("--pictures", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.contender:
        print(run(options.contender, options.pictures, options.ckpt))
        return
    with tempfile.TemporaryDirectory() as folder:
        pictures = Path(folder, "pictures")
        pictures.mkdir()
        write(pictures, options.num)
        ckpt = options.ckpt or quick_checkpoint(Path(folder))
        rounds = []
        for _ in range(options.rounds):
            rounds.append({name: measure(name, pictures, ckpt) for name in CONTENDERS})
            print(json.dumps(rounds[-1]), flush=True)
    Console(width=120).print(table(rounds, options.num))


if __name__ == "__main__":
    main()
