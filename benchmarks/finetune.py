"""A small set of images: fine-tuning, beside the same without the frozen phase, and beside training from scratch.

    python benchmarks/finetune.py --cifar10 data --work /tmp/finetune

A network is pretrained on five classes of CIFAR-10. Of each of the other five a seed draws 20 training images, of which
the recipe sets 4 aside for validation; their 5,000 test images are the test. All contenders have the same images, steps
and augmentation. Every run is in the work folder, and is not done again there. The figures of all are written into
benchmarks/results/finetune.json.

``--try`` is how the hyper-parameters were chosen: it tests on other training images, by seeds of its own.

    python benchmarks/finetune.py --cifar10 data --work /tmp/finetune --try optimizer.lr=0.003
"""

import argparse
import json
from collections.abc import Sequence
from pathlib import Path
from statistics import mean, stdev
from typing import Any

import numpy as np
from hydra.utils import get_class
from PIL import Image
from records import RESULTS, percent

from cifar_lightning.commands.train import train
from cifar_lightning.config.schema import compose
from cifar_lightning.report.stats import summary

RECORD = RESULTS / "finetune.json"
NUM_PER_CLASS = 20
NUM_TRIED_PER_CLASS = 200
"""Images that ``--try`` tests on."""

NETWORK = (
    "model=torchvision",
    "model.image_size=64",
    "model.pretrained=false",
    "normalize=imagenet",
    "data.image_size=32",
)
QUIET = ("callbacks=none", "logger=none", "trainer.enable_progress_bar=false")
PRETRAINING = (
    *("experiment=resnet18", "name=pretraining", "freeze=[]", "tta=0", "trainer.max_epochs=5", "data=folder"),
    *("data.batch_size=500", "data.val_size=0", "augment.early_sizes=[]"),
)
RECIPE = ("experiment=finetune", "data.eval_batch_size=500")
CONTENDERS = {
    "fine-tuned": (),
    "fine-tuned, without the frozen phase": ("freeze_trunk=0",),
    "from scratch": ("init=null", "freeze_trunk=0", "schedule.trunk_factor=1"),
}
"""What is compared, and how it differs from the recipe."""


class Images:
    """CIFAR-10 as arrays, and folders of some of it.

    Args:
        dataset: Dotted name of a class of torchvision's form.
        root: Its folder.
    """

    def __init__(self, dataset: str, root: Path) -> None:
        splits = [get_class(dataset)(root=root, train=train) for train in (True, False)]
        self.pixels = [split.data for split in splits]
        self.targets = [np.asarray(split.targets) for split in splits]
        self.classes: list[str] = splits[0].classes

    def of(self, classes: Sequence[int], *, test: bool) -> np.ndarray:
        """Numbers of all images of some classes."""
        return np.flatnonzero(np.isin(self.targets[test], classes))

    def few_of(self, classes: Sequence[int], seed: int) -> tuple[np.ndarray, np.ndarray]:
        """Numbers of the training images of each class that a seed draws; and of others of the same classes."""
        rng = np.random.default_rng(seed)
        drawn = [rng.permutation(self.of([number], test=False)) for number in classes]
        few, rest = zip(*(np.split(numbers, [NUM_PER_CLASS]) for numbers in drawn), strict=True)
        return np.concatenate(few), np.concatenate([numbers[:NUM_TRIED_PER_CLASS] for numbers in rest])

    def write(self, folder: Path, numbers: np.ndarray, *, test: bool) -> None:
        """Write images as ``folder/<class>/<number>.png``, unless the folder is there."""
        if folder.exists():
            return
        for number in numbers:
            path = folder / self.classes[self.targets[test][number]] / f"{number:05d}.png"
            path.parent.mkdir(parents=True, exist_ok=True)
            Image.fromarray(self.pixels[test][number]).save(path, compress_level=1)


def pretrain(images: Images, work: Path) -> tuple[Path, dict[str, Any]]:
    """The checkpoint of a network that knows the first five classes, and its figures."""
    for test, split in enumerate(("train", "test")):
        images.write(work / "known" / split, images.of(range(5), test=bool(test)), test=bool(test))
    folder = work / "runs" / "pretraining"
    metrics = run(folder, *PRETRAINING, f"data.root={work / 'known'}")
    return folder / "checkpoints" / "last.ckpt", metrics


def run(folder: Path, *overrides: str) -> dict[str, Any]:
    """The metrics of a run, which is not done again."""
    own = overrides if any(override.startswith("resume") for override in overrides) else (*overrides, "resume=auto")
    return train(compose(*own[:1], *NETWORK, *own[1:], *QUIET, f"output_dir={folder}"))


def tried(images: Images, work: Path, ckpt: Path, seeds: Sequence[int], overrides: Sequence[str]) -> list[float]:
    """Accuracies of the recipe with some overrides on training images that it has not seen, by seed."""
    found = []
    for seed in seeds:
        root = work / f"tried{seed}"
        few, others = images.few_of(range(5, 10), 1_000 + seed)
        images.write(root / "train", few, test=False)
        images.write(root / "test", others, test=False)
        name = " ".join(overrides).replace("/", "-").replace("=", "-") or "recipe"
        own = (*RECIPE, f"data.root={root}", f"init={ckpt}", f"seed={seed}", *overrides)
        found.append(run(work / "runs" / f"tried{seed}" / name, *own)["test/acc"])
    return found


def measured(images: Images, work: Path, ckpt: Path, seeds: Sequence[int]) -> dict[str, list[dict[str, Any]]]:
    """The metrics of each contender, by seed, in turn."""
    found: dict[str, list[dict[str, Any]]] = {name: [] for name in CONTENDERS}
    for seed in seeds:
        root = work / f"new{seed}"
        images.write(root / "train", images.few_of(range(5, 10), seed)[0], test=False)
        images.write(root / "test", images.of(range(5, 10), test=True), test=True)
        for name, overrides in CONTENDERS.items():
            own = (*RECIPE, f"data.root={root}", f"init={ckpt}", f"seed={seed}", *overrides)
            found[name].append(run(work / "runs" / f"new{seed}" / name.replace(" ", "-").replace(",", ""), *own))
    return found


def shown(accuracies: Sequence[float]) -> str:
    """Mean, sample standard deviation and number."""
    return f"{percent(summary(accuracies))} (n = {len(accuracies)})"


def main() -> None:
    """Pretrain, then try or measure."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cifar10", type=Path, required=True, help="the folder of CIFAR-10")
    parser.add_argument("--dataset", default="torchvision.datasets.CIFAR10", help="its class")
    parser.add_argument("--work", type=Path, required=True, help="folder for images and runs")
    parser.add_argument("--seeds", type=int, nargs="+", default=[*range(5)])
    parser.add_argument("--try", dest="tried", nargs="*", help="overrides of the recipe to test on training images")
    args = parser.parse_args()
    images, seeds = Images(args.dataset, args.cifar10), args.seeds
    ckpt, pretraining = pretrain(images, args.work)
    if args.tried is not None:
        print(f"{' '.join(args.tried) or 'the recipe'}: {shown(tried(images, args.work, ckpt, seeds, args.tried))}")
        return
    found = measured(images, args.work, ckpt, seeds)
    kept = ("test/acc", "test/balanced_acc", "val/acc", "seed", "epochs", "steps", "precision", "device")
    record = {
        "command": "python benchmarks/finetune.py --cifar10 data --work /tmp/finetune",
        "pretraining": {
            "overrides": [*PRETRAINING, *NETWORK],
            **{
                key: pretraining[key]
                for key in ("test/acc", "seed", "epochs", "steps", "precision", "device", "commit")
            },
        },
        "contenders": {
            name: {
                "overrides": [*RECIPE, *NETWORK, *CONTENDERS[name]],
                "runs": [{key: metrics[key] for key in (*kept, "commit", "dirty")} for metrics in runs],
                "mean": mean(metrics["test/acc"] for metrics in runs),
                "sd": stdev(metrics["test/acc"] for metrics in runs) if len(runs) > 1 else None,
            }
            for name, runs in found.items()
        },
        "versions": found["fine-tuned"][0]["versions"],
    }
    RECORD.parent.mkdir(exist_ok=True)
    RECORD.write_text(json.dumps(record, indent=2) + "\n")
    for name, runs in found.items():
        print(f"{name}: {shown([metrics['test/acc'] for metrics in runs])}")


if __name__ == "__main__":
    main()
