"""A speedrun as a plain loop: whitening, steps and test-time augmentation, without log, checkpoint or Trainer."""

import time
from contextlib import nullcontext

import torch
import torch.nn.functional as F
from harness import Figures, Options, compose, epochs, figures
from torch import Tensor

from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.commands.train import NUM_INIT_IMAGES
from cifar_lightning.config.build import build, build_partial
from cifar_lightning.config.resolve import Settings, as_plain, resolve
from cifar_lightning.data import Batches, spread
from cifar_lightning.data.arrays import Arrays, to_arrays
from cifar_lightning.device import keeping_freed_memory
from cifar_lightning.engine.compile import compile_in_place, with_compiled_update
from cifar_lightning.engine.trainer import precision_of
from cifar_lightning.models import build as build_net
from cifar_lightning.models.speedrun import ConvGroup, SpeedrunNet
from cifar_lightning.optim.freeze import ended, with_early_ends
from cifar_lightning.tta import augmented_logits


class PublishedGroup(ConvGroup):
    """A group that also computes the rows and columns of the first convolution's output that pooling drops."""

    def _first_conv(self, features: Tensor) -> Tensor:
        return self.convs[0](features)


def bare_speedrun(
    options: Options, *, experiment: str, as_published: bool = False, keeps_memory: bool = True
) -> Figures:
    """Run the loop of a recipe.

    On a GPU it runs twice and reports the second run, since the first one compiles and selects kernels.
    ``warm_seconds`` covers what airbench94 measures: whitening, training and test-time augmentation.

    Args:
        options: Options of the command line.
        experiment: Name of the experiment with the recipe.
        as_published: Whether to use the published network's groups, which also compute what pooling drops.
        keeps_memory: Whether to keep freed memory on a CPU, as ``train(cfg)`` does and a plain loop does not.
    """
    device = torch.device("cpu" if options.accelerator == "cpu" else "cuda")
    config = resolve(compose(options, f"experiment={experiment}", f"compile={options.compile}", *epochs(options)))
    torch.backends.cudnn.benchmark = bool(config.trainer["benchmark"])
    with keeping_freed_memory(device) if keeps_memory else nullcontext():
        started = time.perf_counter()
        loop = SpeedrunLoop(config, *_arrays(options, device), as_published=as_published)
        if device.type == "cuda":
            loop.run()
            loop.start_over()
        train_seconds, warm_seconds, acc = loop.run()
        seconds = time.perf_counter() - started
    found = figures(loop.num_steps, loop.batches.batch_size, train_seconds, seconds, acc)
    return found | {"warm_seconds": warm_seconds, "precision": loop.precision}


def _arrays(options: Options, device: torch.device) -> tuple[Arrays, Arrays]:
    train, test = (to_arrays(options.dataset(root=options.root, train=train)) for train in (True, False))
    return train.to(device), test.to(device)


class SpeedrunLoop:
    """A recipe with its data and device.

    Args:
        config: Settings of an experiment.
        train: Training images, on the device.
        test: Test images, on the device.
        as_published: See ``bare_speedrun``.
    """

    def __init__(self, config: Settings, train: Arrays, test: Arrays, *, as_published: bool) -> None:
        self.config, self.train, self.test = config, train, test
        self.device = train.images.device
        self.batches = Batches(
            train,
            torch.arange(len(train.targets)),
            batch_size=config.data["batch_size"],
            seed=0,
            augment=build(config.augment, "augment"),
        )
        net = build_net(**as_plain(config.model), num_classes=10, in_channels=3)
        assert isinstance(net, SpeedrunNet)
        if as_published:
            for conv_group in net.groups:
                conv_group.__class__ = PublishedGroup
        make_optimizer = with_compiled_update(build_partial(config.optimizer, "optimizer"), config.compile)
        self.make_optimizer = with_early_ends(make_optimizer, dict(config.freeze))
        self.classifier = ImageClassifier(net, **config.normalize).to(self.device)
        self.schedule = build(config.schedule, "schedule")
        self.precision = precision_of(config.trainer)
        self.num_epochs = config.trainer["max_epochs"]
        self.num_steps = self.num_epochs * len(self.batches)
        self.initial = {name: value.clone() for name, value in self.classifier.state_dict().items()}
        self.trained = [parameter for parameter in net.parameters() if parameter.requires_grad]
        compile_in_place(net, config.compile)

    def start_over(self) -> None:
        """Reset all weights to their values before training."""
        self.classifier.train().load_state_dict(self.initial)
        for parameter in self.trained:
            parameter.requires_grad_(True).grad = None

    def run(self) -> tuple[float, float, float]:
        """Return the seconds of training, the seconds with whitening and test, and the accuracy with TTA."""
        self._wait()
        started = time.perf_counter()
        net = self.classifier.net
        assert isinstance(net, SpeedrunNet)
        chosen = spread(len(self.train.images), NUM_INIT_IMAGES)
        net.init_from_data(self.classifier.normalized(self.train.images[chosen]))
        optimizer = self.make_optimizer(net)
        train_started = time.perf_counter()
        self._train(optimizer)
        self._wait()
        train_seconds = time.perf_counter() - train_started
        acc = self._test()
        return train_seconds, time.perf_counter() - started, acc

    def _train(self, optimizer: torch.optim.Optimizer) -> None:
        rates, step = [group["lr"] for group in optimizer.param_groups], 0
        for epoch in range(self.num_epochs):
            self.batches.sampler.set_epoch(epoch)
            for parameter in ended(optimizer.param_groups, epoch / self.num_epochs):
                parameter.requires_grad_(False).grad = None
            for images, targets in self.batches:
                for group, rate in zip(optimizer.param_groups, rates, strict=True):
                    progress = step / self.num_steps / group.get("end_fraction", 1)
                    group["lr"] = rate * self.schedule(progress) if progress < 1 else 0.0
                optimizer.zero_grad()
                logits = self._classify(images).float()
                F.cross_entropy(logits, targets, label_smoothing=self.config.label_smoothing).backward()
                optimizer.step()
                step += 1

    def _test(self) -> float:
        self.classifier.eval()
        batches = self.test.images.split(self.config.data["eval_batch_size"])
        logits = [augmented_logits(self._classify, images, level=self.config.tta)[1] for images in batches]
        return (torch.cat(logits).argmax(1) == self.test.targets).double().mean().item()

    def _classify(self, images: Tensor) -> Tensor:
        is_mixed = self.precision == "bf16-mixed"
        with torch.autocast(self.device.type, torch.bfloat16, enabled=is_mixed):
            return self.classifier(images)

    def _wait(self) -> None:
        if self.device.type == "cuda":
            torch.cuda.synchronize()
