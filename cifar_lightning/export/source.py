"""What is exported: a checkpoint's network in float32, and what the checkpoint says of itself."""

import copy
import json
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from jaxtyping import Float, UInt8
from torch import Tensor, nn

from cifar_lightning import models
from cifar_lightning.calibration import calibrated, uncalibrated
from cifar_lightning.checkpoint.load import load_classifier
from cifar_lightning.classifier import ImageClassifier
from cifar_lightning.models.speedrun import PatchConv

RESIZE = "largest centred square, antialiased bilinear"
"""How a picture of another size becomes an image of the network; see ``data.decode.decode_files``."""


@dataclass(frozen=True)
class Source:
    """A checkpoint, ready to be exported.

    Attributes:
        path: Of the checkpoint.
        settings: Those in it.
        description: JSON text for the metadata of an exported file: ``format_version``, ``settings`` and
            ``temperature`` as in the checkpoint, and how images are prepared.
        classifier: Raw uint8 images -> logits, divided by the temperature where there is one, in float32 and plain
            operations. Formats that hold a program hold this.
        reference: The checkpoint's own classifier, in float32; in float64 if its weights are.
        mean: Mean of the pixels per channel that the network is fed with, in [0, 1].
        std: Standard deviation likewise.
        weights_type: Name of the type of the checkpoint's weights, such as ``bfloat16``.
    """

    path: Path
    settings: dict[str, Any]
    description: str
    classifier: ImageClassifier
    reference: ImageClassifier
    mean: list[float]
    std: list[float]
    weights_type: str

    @property
    def image_shape(self) -> tuple[int, int, int]:
        """Shape (C, H, W) of the images."""
        height, width = self.settings["image_size"]
        return (self.settings["model"]["in_channels"], height, width)

    @property
    def temperature(self) -> float | None:
        """What logits are divided by for calibrated probabilities; None where the checkpoint has none."""
        return self.reference.temperature

    def logits_of_program(self, logits: Float[Tensor, "n k"]) -> Float[Tensor, "n k"]:
        """The checkpoint's logits, from those of ``classifier``."""
        return uncalibrated(logits, self.temperature)

    @property
    def weights(self) -> dict[str, Tensor]:
        """The network's own weights by name, without normalisation, in float32."""
        return {name: value.contiguous() for name, value in self.classifier.net.state_dict().items()}

    @property
    def example(self) -> Tensor:
        """Two blank images."""
        return torch.zeros(2, *self.image_shape, dtype=torch.uint8)


class _Calibrated(ImageClassifier):
    """A classifier whose logits are divided by the temperature, where there is one."""

    def forward(self, images: UInt8[Tensor, "b c h w"]) -> Float[Tensor, "b k"]:
        return calibrated(super().forward(images), self.temperature)


def load_source(path: str | Path) -> Source:
    """A checkpoint, ready to be exported.

    Raises:
        UserError: If the file is no checkpoint that can be used.
    """
    reference, checkpoint = load_classifier(path)
    types = {value.dtype for value in reference.state_dict().values() if value.is_floating_point()}
    settings = checkpoint["settings"]
    classifier = _plain(reference, settings)
    mean, std = _normalization(classifier, settings)
    return Source(
        path=Path(path),
        settings=settings,
        description=_description(checkpoint),
        classifier=classifier,
        reference=reference.double() if torch.float64 in types else reference.float(),
        mean=mean,
        std=std,
        weights_type=", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in types)),
    )


def _description(checkpoint: dict[str, Any]) -> str:
    own = {key: checkpoint.get(key) for key in ("format_version", "settings", "temperature")}
    inputs = {
        "input": "images: raw uint8 pixels (N, C, H, W), RGB or grey; normalisation is inside",
        "output": "logits: float32 (N, K), in the order of settings.classes; of a program divided by temperature",
        "resize": RESIZE,
    }
    return json.dumps({**own, "images": inputs})


def _plain(reference: ImageClassifier, settings: dict[str, Any]) -> ImageClassifier:
    """A copy of a classifier in float32, of operations that exporters know and that no batch size changes."""
    arguments = {**settings["model"], **({"fourier": False} if "fourier" in settings["model"] else {})}
    with torch.device("meta"):
        net = models.build(**arguments)
        classifier = _Calibrated(net, mean=settings["normalize"]["mean"], std=settings["normalize"]["std"])
    classifier.temperature = reference.temperature
    classifier.load_state_dict(copy.deepcopy(reference.state_dict()), assign=True)
    for module in list(net.modules()):
        for name, child in module.named_children():
            if isinstance(child, PatchConv):
                setattr(module, name, _without_autocast(child))
    return classifier.float().eval().requires_grad_(False)


def _without_autocast(conv: PatchConv) -> nn.Conv2d:
    """The same convolution, which does not turn autocast off: a program would have a step for that."""
    with torch.device("meta"):
        plain = nn.Conv2d(conv.in_channels, conv.out_channels, kernel_size=2)
    plain.weight, plain.bias = conv.weight, conv.bias
    return plain


def _normalization(classifier: ImageClassifier, settings: dict[str, Any]) -> tuple[list[float], list[float]]:
    """Mean and standard deviation as the settings say, or as the weights do where training has rounded them."""
    std = 1 / (255 * classifier.scale.double().flatten())
    mean = -classifier.shift.double().flatten() * std
    asked = [torch.tensor(settings["normalize"][key], dtype=torch.float64) for key in ("mean", "std")]
    if all(torch.allclose(one, other, rtol=1e-6, atol=1e-7) for one, other in zip(asked, (mean, std), strict=True)):
        mean, std = asked
    num_channels = settings["model"]["in_channels"]
    return mean.expand(num_channels).tolist(), std.expand(num_channels).tolist()
