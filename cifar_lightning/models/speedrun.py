"""The network of the CIFAR-10 speedruns: a whitening layer, three groups of convolutions and a linear head."""

import itertools
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from jaxtyping import Float
from torch import Tensor, nn

from cifar_lightning.models.fourier import fourier_conv2d, is_faster


class SpeedrunNet(nn.Module):
    """The network of airbench94: 94 % on CIFAR-10 within ten epochs; wider and deeper it reaches 95 and 96 %.

    A frozen 2x2 convolution whitens the patches of the images. Then three groups of 3x3 convolutions halve the
    resolution each. A linear head reads the maximum of each channel. Call ``init_from_data`` before the first step.
    The bias of ``patches`` can be frozen after a few epochs: backward then ends one layer earlier, and a step is 8 %
    faster on a CPU.

    It has 1,972,792 parameters for 3 channels and 10 classes; 1,971,352 of them are trained.

    Args:
        num_classes: Number of outputs.
        in_channels: Channels of the images, which must be at least 9x9.
        widths: Channels of the three groups, each in [1, 4096].
        depth: Convolutions per group, 2 or 3; one number for all groups or one for each. With 3, a residual connection
            bypasses the second and third. A third one in the last group costs 5 % of the FLOPs.
        whiten: Whether the first layer's filters are set from the data and frozen. If not, they start from torch's
            initialisation and are trained.
        zero_bias: Whether the first layer's bias starts at zero instead of torch's initialisation.
        identity_init: Whether the first filters of each 3x3 convolution start as the identity.
        unit_head: Whether the head's weights are scaled to a standard deviation of 1; meant for a ``logit_scale`` of
            1 / ``widths[2]``.
        logit_scale: Factor of the logits, in (0, 1].
        bn_momentum: Weight of the newest batch in batch norm's running statistics, in (0, 1].
        fourier: Whether 3x3 convolutions are computed in the Fourier domain where that is faster: for many maps on a
            CPU, not compiled. The result is the same up to rounding, in 0.6 of the time.

    Raises:
        ValueError: If an argument is out of its range.

    Source: Jordan 2024, "94% on CIFAR-10 in 3.29 Seconds on a Single GPU" (arXiv:2404.00498); after Page 2018, "How to
    train your ResNet", and tysam-code/hlb-CIFAR10.
    """

    def __init__(
        self,
        *,
        num_classes: int = 10,
        in_channels: int = 3,
        widths: Sequence[int] = (64, 256, 256),
        depth: int | Sequence[int] = 2,
        whiten: bool = True,
        zero_bias: bool = False,
        identity_init: bool = True,
        unit_head: bool = True,
        logit_scale: float = 1 / 256,
        bn_momentum: float = 0.1,
        fourier: bool = False,
    ) -> None:
        super().__init__()
        if len(widths) != 3 or not all(1 <= width <= 4096 for width in widths):
            raise ValueError(f"widths must be three whole numbers in [1, 4096], got {list(widths)}")
        depths = [depth] * 3 if isinstance(depth, int) else list(depth)
        if len(depths) != 3 or not set(depths) <= {2, 3}:
            raise ValueError(f"depth must be 2 or 3, or three such numbers, got {depth}")
        for name, value in {"logit_scale": logit_scale, "bn_momentum": bn_momentum}.items():
            if not 0 < value <= 1:
                raise ValueError(f"{name} must be in (0, 1], got {value}")
        self.whiten = whiten
        self.logit_scale = logit_scale
        self.patches = PatchConv(in_channels)
        self.patches.weight.requires_grad_(not whiten)
        if zero_bias:
            nn.init.zeros_(self.patches.bias)
        channels = (self.patches.out_channels, *widths)
        options: dict[str, Any] = {"identity_init": identity_init, "bn_momentum": bn_momentum, "fourier": fourier}
        pairs = zip(itertools.pairwise(channels), depths, strict=True)
        self.groups = nn.Sequential(*(ConvGroup(*pair, depth=depth, **options) for pair, depth in pairs))
        self.head = nn.Linear(widths[-1], num_classes, bias=False)
        if unit_head:
            with torch.no_grad():
                self.head.weight /= self.head.weight.std()
        self.to(memory_format=torch.channels_last)  # see ResNet18

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n k"]:
        features = self.groups(F.gelu(self.patches(images)))  # (N, widths[2], 3, 3) of images of 32x32
        return self.head(_maxima(features)) * self.logit_scale

    @torch.no_grad()
    def init_from_data(self, images: Float[Tensor, "n c h w"]) -> None:
        """Set the first layer's filters from normalised images without augmentation; a few thousand are enough."""
        if self.whiten:
            filters = whitening_filters(images)
            self.patches.weight.copy_(torch.cat([filters, -filters]))  # both signs, since GELU drops negative values

    def parameter_kinds(self) -> dict[str, list[Tensor]]:
        """Group the trainable parameters by kind, for optimizers that treat kinds differently.

        Returns:
            ``whiten_bias``: the bias of the first layer. ``norm``: the biases of batch norms. ``filters``: those of the
            convolutions; the first layer's only if they are trained. ``head``: the head's matrix. Each trainable
            parameter has one kind.
        """
        convolutions = [module for module in self.modules() if isinstance(module, nn.Conv2d)]
        norms = [module for module in self.modules() if isinstance(module, nn.BatchNorm2d)]
        kinds: dict[str, list[Tensor]] = {
            "whiten_bias": [self.patches.bias],
            "norm": [norm.bias for norm in norms],
            "filters": [convolution.weight for convolution in convolutions],
            "head": [self.head.weight],
        }
        return {kind: [p for p in parameters if p.requires_grad] for kind, parameters in kinds.items()}


def _maxima(features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n c"]:
    """Compute the maximum of each map."""
    if torch.compiler.is_compiling():
        # The backward of amax compares the map with its maximum. Compiled code computes a bf16 map again for that, but
        # without rounding, so no value equals the maximum and the gradient is nan. Uncompiled code keeps amax: it
        # divides the gradient between equal maxima, as in all figures of RESULTS.md.
        return F.max_pool2d(features, features.shape[2:]).flatten(1)
    return features.amax((2, 3))


class PatchConv(nn.Conv2d):
    """2x2 convolution with two filters for each value of a patch; it computes in fp32, also under autocast.

    On CPUs, 2x2 convolutions in bf16 can be wrong (pytorch/pytorch#163347). This one is 0.2 % of the network's FLOPs.

    Args:
        in_channels: Channels of the images, C; the output has 8C.
    """

    bias: nn.Parameter  # never None in this class

    def __init__(self, in_channels: int) -> None:
        super().__init__(in_channels, 2 * 4 * in_channels, kernel_size=2)

    def forward(self, images: Float[Tensor, "n c h w"]) -> Float[Tensor, "n f h-1 w-1"]:
        with torch.autocast(images.device.type, enabled=False):
            outputs = F.conv2d(images.float(), self.weight.float(), self.bias.float())
        return outputs.to(images.dtype)


class ConvGroup(nn.Module):
    """Two or three 3x3 convolutions with batch norm and GELU; max-pooling after the first halves the resolution.

    Only the bias of batch norm is trained; its scale stays 1 (Page 2018).

    Args:
        in_channels: Channels of the input.
        width: Channels of the output.
        depth: Number of convolutions, 2 or 3. With 3, a residual connection bypasses the second and third.
        identity_init: Whether the first filters of each convolution start as the identity.
        bn_momentum: As ``momentum`` of ``nn.BatchNorm2d``.
        fourier: As in ``SpeedrunNet``.
    """

    def __init__(
        self, in_channels: int, width: int, *, depth: int, identity_init: bool, bn_momentum: float, fourier: bool
    ) -> None:
        super().__init__()
        self.fourier = fourier
        inputs = (in_channels, width, width)[:depth]
        convs = [nn.Conv2d(channels, width, 3, padding=1, bias=False) for channels in inputs]
        norms = [nn.BatchNorm2d(width, eps=1e-12, momentum=bn_momentum) for _ in inputs]
        for conv, norm in zip(convs, norms, strict=True):
            norm.weight.requires_grad_(False)
            if identity_init:
                nn.init.dirac_(conv.weight[: conv.in_channels])  # the other filters keep torch's initialisation
        self.convs = nn.ModuleList(convs)
        self.norms = nn.ModuleList(norms)

    def forward(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n width h//2 w//2"]:
        # Pool before the norm, so that norm and GELU compute only a quarter of the values.
        features = F.gelu(self.norms[0](F.max_pool2d(self._first_conv(features), 2)))
        shortcut = features
        features = F.gelu(self.norms[1](self._conv(1, features)))
        if len(self.convs) == 3:
            features = F.gelu(self.norms[2](self._conv(2, features)) + shortcut)
        return features

    def _first_conv(self, features: Float[Tensor, "n c h w"]) -> Float[Tensor, "n width h2 w2"]:
        """Apply the first convolution without the last row and column of its output if pooling drops them.

        For images of 32x32 they are 11 % of airbench94's FLOPs.
        """
        height, width = features.shape[2:]
        return self._conv(0, features, drop=(height % 2, width % 2))

    def _conv(
        self, index: int, features: Float[Tensor, "n c h w"], *, drop: tuple[int, int] = (0, 0)
    ) -> Float[Tensor, "n width h2 w2"]:
        """Apply a convolution without the last ``drop`` rows and columns of its output, 0 or 1 each."""
        conv = self.convs[index]
        assert isinstance(conv, nn.Conv2d)
        (height, width), (rows, columns) = features.shape[2:], drop
        if self.fourier and is_faster(features):
            return fourier_conv2d(features, conv.weight, (height - rows, width - columns))
        if not (rows or columns):  # padding inside the convolution is free; F.pad makes a copy
            return conv(features)
        return F.conv2d(F.pad(features, (1, 1 - columns, 1, 1 - rows)), conv.weight)


def whitening_filters(images: Float[Tensor, "n c h w"], *, eps: float = 5e-4) -> Float[Tensor, "4*c c 2 2"]:
    """Compute filters that whiten 2x2 patches: up to ``eps``, the second moment of their outputs is the identity.

    They are the eigenvectors of the patches' second moment (the mean is not subtracted), each divided by the square
    root of its eigenvalue + ``eps``, in the order of increasing eigenvalues.

    Args:
        images: Normalised images.
        eps: Limits the size of the filters for directions of almost no variance.

    Returns:
        The filters on the CPU, the same on every device up to rounding.
    """
    if images.device.type == "mps":  # MPS has no float64
        images = images.cpu()
    num_patches = len(images) * (images.shape[2] - 1) * (images.shape[3] - 1)
    # A few images at a time: patches in float64 take eight times the memory of their images.
    patches = (F.unfold(some.double(), 2) for some in images.split(500))  # each (n, 4C, positions)
    moment = torch.stack([(some @ some.mT).sum(0) for some in patches]).sum(0) / num_patches
    eigenvalues, eigenvectors = torch.linalg.eigh(moment.cpu())
    # LAPACK may return either sign of an eigenvector. The largest component is made positive, so that machines agree.
    largest = eigenvectors.gather(0, eigenvectors.abs().argmax(0, keepdim=True))
    filters = eigenvectors * largest.sign() / (eigenvalues + eps).sqrt()
    return filters.mT.reshape(-1, images.shape[1], 2, 2).float()
