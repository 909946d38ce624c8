"""What is compared: hand-written loops, and the project's own train(cfg).

One contender per process, one JSON line each:

    python benchmarks/contenders.py bare_tutorial --epochs 1
    python benchmarks/contenders.py bare_speedrun_gpu --accelerator gpu --compile reduce-overhead

The clock starts after the imports and stops after the test images; ``train_seconds`` is the training alone.
"""

import argparse
import json
import resource
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import nullcontext
from functools import partial

import torch
import torch.nn.functional as F
import torchvision.transforms as T
from harness import Figures, Options, arguments, compose, epochs, figures, tensors
from speedrun_loop import bare_speedrun
from torch import nn
from torch.utils.data import DataLoader

from cifar_lightning.device import fast_precision, keeping_freed_memory
from cifar_lightning.models import build


def tutorial_loop(options: Options) -> Figures:
    """The loop of PyTorch's 60-minute tutorial: two workers, a transform per image, ``.item()`` at each step.

    Its evaluation goes over the test images twice: for the accuracy, then for the accuracy of each class.
    """
    started = time.perf_counter()
    transform = T.Compose([T.ToTensor(), T.Normalize((0.5, 0.5, 0.5), (0.5, 0.5, 0.5))])
    splits = [options.dataset(root=options.root, train=train, transform=transform) for train in (True, False)]
    train_loader = DataLoader(splits[0], batch_size=4, shuffle=True, num_workers=2)
    test_loader = DataLoader(splits[1], batch_size=4, shuffle=False, num_workers=2)
    net = build("tutorial", num_classes=10, in_channels=3).to(memory_format=torch.contiguous_format)
    criterion = nn.CrossEntropyLoss()
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9)

    train_started = time.perf_counter()
    num_steps = 0
    for _ in range(options.epochs or 2):
        running_loss = 0.0
        for images, targets in train_loader:
            optimizer.zero_grad()
            loss = criterion(net(images), targets)
            loss.backward()
            optimizer.step()
            running_loss += loss.item()
            num_steps += 1
            if num_steps % 2000 == 0:
                running_loss = 0.0
    train_seconds = time.perf_counter() - train_started

    correct = total = 0
    with torch.no_grad():
        for images, targets in test_loader:
            _, preds = torch.max(net(images), 1)
            total += targets.size(0)
            correct += (preds == targets).sum().item()

    class_correct, class_total = dict.fromkeys(splits[1].classes, 0), dict.fromkeys(splits[1].classes, 0)
    with torch.no_grad():
        for images, targets in test_loader:
            _, preds = torch.max(net(images), 1)
            for target, pred in zip(targets, preds, strict=True):
                class_correct[splits[1].classes[target]] += int(target == pred)
                class_total[splits[1].classes[target]] += 1
    return figures(num_steps, 4, train_seconds, time.perf_counter() - started, correct / total)


def bare_tutorial(options: Options) -> Figures:
    """The tutorial's recipe over uint8 tensors in memory, with fused SGD and nothing else: the floor."""
    started = time.perf_counter()
    torch.set_num_threads(1)  # as train(cfg) does for steps as small as these
    images, targets = tensors(options, train=True)
    net = build("tutorial", num_classes=10, in_channels=3)
    optimizer = torch.optim.SGD(net.parameters(), lr=0.001, momentum=0.9, fused=True)

    train_started = time.perf_counter()
    num_steps = 0
    for _ in range(options.epochs or 2):
        for chosen in torch.randperm(len(images)).split(4):
            optimizer.zero_grad()
            F.cross_entropy(net(images[chosen].float().div_(127.5).sub_(1)), targets[chosen]).backward()
            optimizer.step()
            num_steps += 1
    train_seconds = time.perf_counter() - train_started

    images, targets = tensors(options, train=False)
    with torch.no_grad():
        preds = torch.cat([net(part.float().div_(127.5).sub_(1)).argmax(1) for part in images.split(500)])
    acc = (preds == targets).double().mean().item()
    return figures(num_steps, 4, train_seconds, time.perf_counter() - started, acc)


def bare_resnet18(
    options: Options, *, precision: str, layout: torch.memory_format, keeps_memory: bool = True
) -> Figures:
    """Steps of experiment=resnet18 over whole images in memory, without augmentation, schedule, log or checkpoint.

    Args:
        options: Those of the command line.
        precision: ``32-true`` or ``bf16-mixed``.
        layout: Of images and filters.
        keeps_memory: As ``train(cfg)`` does; a plain loop does not.
    """
    from cifar_lightning.config.build import build_partial
    from cifar_lightning.config.resolve import resolve

    config = resolve(compose(options, "experiment=resnet18"))
    batch_size = config.data["batch_size"]
    images, targets = tensors(options, train=True)
    net = build("resnet18", num_classes=10, in_channels=3).to(memory_format=layout)
    optimizer = build_partial(config.optimizer, "optimizer")(net)

    def steps(num_steps: int) -> None:
        for chosen in _endless(len(images), batch_size, num_steps):
            batch = images[chosen].float().div_(127.5).sub_(1).to(memory_format=layout)
            optimizer.zero_grad()
            with torch.autocast("cpu", torch.bfloat16, enabled=precision == "bf16-mixed"):
                logits = net(batch)
            F.cross_entropy(logits.float(), targets[chosen], label_smoothing=config.label_smoothing).backward()
            optimizer.step()

    with keeping_freed_memory(torch.device("cpu")) if keeps_memory else nullcontext():
        started = time.perf_counter()
        steps(options.steps)
        seconds = time.perf_counter() - started
    return figures(options.steps, batch_size, seconds, seconds, None) | {"precision": precision}


def project(options: Options, *overrides: str) -> Figures:
    """``train(cfg)``, the function behind train.py, with all that it does by default."""
    from cifar_lightning.commands.train import train

    with tempfile.TemporaryDirectory() as folder:
        metrics = train(compose(options, *overrides, f"output_dir={folder}/run"))
    batch_size = round(metrics["images_per_second"] * metrics["train_seconds"] / metrics["steps"])
    acc = metrics.get("test/acc_tta", metrics.get("test/acc"))
    found = figures(metrics["steps"], batch_size, metrics["train_seconds"], metrics["seconds"], acc)
    return found | {name: metrics[name] for name in ("warm_seconds", "precision")}


def project_tutorial(options: Options) -> Figures:
    """``python train.py``."""
    return project(options, *epochs(options))


def project_resnet18(options: Options) -> Figures:
    """``python train.py experiment=resnet18``, its first steps, but over whole images and with all of the network."""
    limits = (f"trainer.limit_train_batches={options.steps}", "trainer.max_epochs=1", "trainer.limit_test_batches=0")
    return project(options, "experiment=resnet18", "augment.early_sizes=[]", "freeze=[]", *limits)


def project_speedrun(options: Options, *, experiment: str) -> Figures:
    """``python train.py experiment=speedrun``, or another speedrun."""
    return project(options, f"experiment={experiment}", f"compile={options.compile}", *epochs(options))


def _endless(num_images: int, batch_size: int, num_steps: int) -> Iterator[torch.Tensor]:
    done = 0
    while True:
        for chosen in torch.randperm(num_images).split(batch_size):
            if done == num_steps:
                return
            yield chosen
            done += 1


CONTENDERS: dict[str, Callable[[Options], Figures]] = {
    "tutorial_loop": tutorial_loop,
    "bare_tutorial": bare_tutorial,
    "project_tutorial": project_tutorial,
    "plain_resnet18": partial(bare_resnet18, precision="32-true", layout=torch.contiguous_format, keeps_memory=False),
    "bare_resnet18": partial(bare_resnet18, precision=fast_precision("cpu"), layout=torch.channels_last),
    "project_resnet18": project_resnet18,
    "reference_speedrun": partial(bare_speedrun, experiment="speedrun_gpu", as_published=True, keeps_memory=False),
    "reference_speedrun_kept": partial(bare_speedrun, experiment="speedrun_gpu", as_published=True),
    "bare_speedrun": partial(bare_speedrun, experiment="speedrun"),
    "project_speedrun": partial(project_speedrun, experiment="speedrun"),
    "bare_speedrun_gpu": partial(bare_speedrun, experiment="speedrun_gpu"),
    "project_speedrun_gpu": partial(project_speedrun, experiment="speedrun_gpu"),
}


def run(contender: str, options: Options) -> Figures:
    """Figures of a contender, with its name and the most memory that this process has held so far, in GiB."""
    torch.manual_seed(0)
    found = CONTENDERS[contender](options)
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20  # KiB on Linux
    return {"contender": contender, **found, "peak_gib": peak}


def main() -> None:
    """Run one contender and print its figures as JSON."""
    parser = argparse.ArgumentParser(parents=[arguments()], description=__doc__)
    parser.add_argument("contender", choices=CONTENDERS)
    options = parser.parse_args()
    print(json.dumps(run(options.contender, options)))


if __name__ == "__main__":
    main()
