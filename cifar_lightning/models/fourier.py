"""3x3 convolutions of many small maps in the Fourier domain, with far fewer multiplications; for CPUs.

On a map of 7x7 a convolution needs 361 multiplications for each pair of an input and an output channel. The Fourier
transform of size 8x8 has 64 real coefficients, which form 32 pairs. The product of two pairs needs 4 multiplications,
so all 32 need 128. The transforms between pixels and frequencies are products with small orthogonal matrices. They do
not amplify rounding errors, as Winograd's transforms do. All steps are matrix products, which reach a CPU's peak speed.
The usual kernels for the gradients of filters do not.

Source: Mathieu, Henaff and LeCun 2014, "Fast training of convolutional networks through FFTs" (arXiv:1312.5851).
"""

import functools
import math
from typing import Any, NamedTuple

import torch
from jaxtyping import Float
from torch import Tensor

MIN_BATCH = 256
"""Smallest batch. The filters need a transform too: with 128 images it costs all that is saved, with 500 it pays."""

MIN_CHANNELS = 48
"""Fewest input channels. With 64 channels in and out it saves a fifth of the time; most of it goes to transforms."""

MAX_SIZE = 16
"""Largest height or width of a map. The cost of a transform per pixel grows with it, and so do its matrices."""

DENSE_SIZE = 8
"""Up to this period a transform is one matrix product; above it there is one along rows and one along columns."""

BLOCK_BYTES = 4 << 20
"""Memory of the images that are transformed together: a block of this size stays in the last-level cache."""


def is_faster(features: Float[Tensor, "n c h w"]) -> bool:
    """Whether ``fourier_conv2d`` of these maps is faster than a direct convolution.

    False inside ``torch.compile``: the loops over blocks would add hundreds of operations to a graph, or break it.
    """
    num_images, channels, *size = features.shape
    worthwhile = num_images >= MIN_BATCH and channels >= MIN_CHANNELS and max(size) <= MAX_SIZE
    return features.is_cpu and worthwhile and not torch.compiler.is_compiling()


def fourier_conv2d(
    features: Float[Tensor, "n c h w"], filters: Float[Tensor, "k c 3 3"], size: tuple[int, int]
) -> Float[Tensor, "n k h2 w2"]:
    """Convolve maps with 3x3 filters and a border of zeros, on a CPU, also under autocast.

    Args:
        features: Maps; fastest in channels_last.
        filters: Filters of the convolution.
        size: Height and width of the output, at most those of the maps.

    Returns:
        ``F.conv2d(features, filters, padding=1)[:, :, :h2, :w2]`` up to rounding, in channels_last.
    """
    if torch.is_autocast_enabled("cpu") and features.dtype is not torch.float64:  # autocast leaves float64 alone
        features = features.to(torch.get_autocast_dtype("cpu"))
    # Convolutions in the Fourier domain are circular: one more row and column of zeros is the border of both sides.
    period = max(features.shape[2:]) + 1
    period += period % 2
    spectra = _Analysis.apply(features.permute(0, 2, 3, 1), period)
    spectra = torch.bmm(spectra, _filter_spectra(filters, period, features.dtype))
    return _Synthesis.apply(spectra, period, *size).permute(0, 3, 1, 2)


class _Analysis(torch.autograd.Function):
    """From pixels (n, h, w, c) to frequencies (L*L/2, n, 2*c) for a period L."""

    @staticmethod
    def forward(ctx: Any, pixels: Tensor, period: int) -> Tensor:
        ctx.period, ctx.size = period, pixels.shape[1:3]
        return _analysed(pixels, period)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        return _Synthesis.apply(*grads, ctx.period, *ctx.size), None


class _Synthesis(torch.autograd.Function):
    """From frequencies to pixels. The matrices are orthogonal, so analysis and synthesis are each other's gradient."""

    @staticmethod
    def forward(ctx: Any, spectra: Tensor, period: int, height: int, width: int) -> Tensor:
        ctx.period = period
        return _synthesised(spectra, period, height, width)

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None, None, None]:
        return _Analysis.apply(*grads, ctx.period), None, None, None


def _analysed(pixels: Float[Tensor, "n h w c"], period: int) -> Float[Tensor, "p n 2*c"]:
    """Compute p pairs of Fourier coefficients; each pair is a matrix with one row per image."""
    num_images, height, width, channels = pixels.shape
    transform = _transform(period, height, width, pixels.dtype)
    spectra = pixels.new_empty(period**2 // 2, num_images, 2 * channels)
    step = min(num_images, _images_at_once(period, channels, pixels.dtype))
    columns = transform.columns.repeat(step, 1, 1)  # repeated once here: matmul would repeat it for each block
    for some, out in zip(pixels.split(step), spectra.split(step, dim=1), strict=True):
        n = len(some)
        if period <= DENSE_SIZE:
            found = transform.dense @ some.reshape(n, height * width, channels)
        else:
            found = transform.rows @ some.reshape(n, height, width * channels)
            found = torch.bmm(columns[: n * period // 2], found.view(n * period // 2, 2 * width, channels))
        out.copy_(found.view(n, period**2 // 2, 2 * channels).transpose(0, 1))
    return spectra


def _synthesised(spectra: Float[Tensor, "p n pair"], period: int, height: int, width: int) -> Float[Tensor, "n h w c"]:
    """Apply the transpose of ``_analysed``."""
    num_images, channels = spectra.shape[1], spectra.shape[2] // 2
    transform = _transform(period, height, width, spectra.dtype)
    pixels = spectra.new_empty(num_images, height, width, channels)
    step = min(num_images, _images_at_once(period, channels, spectra.dtype))
    columns = transform.columns.mT.repeat(step, 1, 1)
    for some, out in zip(spectra.split(step, dim=1), pixels.split(step), strict=True):
        n = len(out)
        if period <= DENSE_SIZE:
            some = some.transpose(0, 1).reshape(n, period**2, channels)
            torch.matmul(transform.dense.mT, some, out=out.view(n, height * width, channels))
        else:
            some = some.transpose(0, 1).reshape(n * period // 2, 2 * period, channels)
            found = torch.bmm(columns[: n * period // 2], some).view(n, period, width * channels)
            torch.matmul(transform.rows.mT, found, out=out.view(n, height, width * channels))
    return pixels


def _images_at_once(period: int, channels: int, dtype: torch.dtype) -> int:
    return max(1, BLOCK_BYTES // (period**2 * channels * dtype.itemsize))


def _filter_spectra(filters: Float[Tensor, "k c 3 3"], period: int, dtype: torch.dtype) -> Float[Tensor, "p 2*c 2*k"]:
    """Compute the 2x2 factors of each pair of input coefficients in the filters' precision, then round to ``dtype``."""
    num_filters, channels = filters.shape[:2]
    shifts = _shifts(period).to(filters.dtype)
    with torch.autocast("cpu", enabled=False):
        spectra = shifts @ filters.permute(2, 3, 1, 0).reshape(9, channels * num_filters)
    spectra = spectra.view(-1, 2, 2, channels, num_filters).to(dtype)
    return spectra.transpose(2, 3).reshape(-1, 2 * channels, 2 * num_filters)


class _Transform(NamedTuple):
    """Matrices of the Fourier transform of maps of h x w pixels, for a period of L in both directions."""

    rows: Tensor
    """(L, h): along the first axis; its L rows are L/2 pairs of frequencies."""

    columns: Tensor
    """(L/2, 2L, 2w): along the second axis, for each pair of the first axis."""

    dense: Tensor
    """(L*L, h*w): both axes in one matrix."""


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _transform(period: int, height: int, width: int, dtype: torch.dtype) -> _Transform:
    rows, columns = _bases(period)
    dense = _dense(rows, columns)
    columns = columns.view(period // 2, 2 * period, 2, period)[..., :width].flatten(2)
    dense = dense.view(-1, period, period)[:, :height, :width].flatten(1)
    return _Transform(*(part.to(dtype).contiguous() for part in (rows[:, :height], columns, dense)))


@functools.lru_cache(maxsize=64)
@torch.inference_mode(False)
def _shifts(period: int) -> Float[Tensor, "numbers 9"]:
    """How a filter's nine weights act on each pair of Fourier coefficients: 2x2 numbers (input, output) per pair."""
    dense = _dense(*_bases(period))
    pairs = dense.view(-1, 2, period**2)
    moved = (
        dense.view(-1, period, period).roll((row - 1, column - 1), (1, 2)).view(-1, 2, period**2)
        for row in range(3)
        for column in range(3)
    )
    # A shift maps each pair to itself, so no products of different pairs are needed.
    return torch.stack([pairs @ some.mT for some in moved], -1).view(-1, 9)


def _bases(period: int) -> tuple[Float[Tensor, "L L"], Float[Tensor, "L//2 2*L 2*L"]]:
    """Orthogonal matrices in float64: one for the first axis, and for each of its pairs one for the second axis.

    The first pair is the mean and the alternating sum, two real coefficients. Each other pair is a cosine and a sine:
    the real and the imaginary part of a complex coefficient. Along the second axis each of the two real coefficients
    gets the same real transform. A complex coefficient gets a complex transform.
    """
    n = torch.arange(period, dtype=torch.float64)
    angles = 2 * math.pi * n[:, None] * n / period
    cosines, sines = angles.cos() / math.sqrt(period), angles.sin() / math.sqrt(period)
    complex_pairs = torch.stack([cosines, sines], 1)[1 : period // 2] * math.sqrt(2)
    rows = torch.cat([cosines[[0, period // 2]], complex_pairs.flatten(0, 1)])
    as_complex = torch.stack([torch.cat([cosines, -sines], 1), torch.cat([-sines, -cosines], 1)], 1).flatten(0, 1)
    return rows, torch.stack([torch.block_diag(rows, rows), *[as_complex] * (period // 2 - 1)])


def _dense(rows: Float[Tensor, "L L"], columns: Float[Tensor, "L//2 2*L 2*L"]) -> Float[Tensor, "L*L L*L"]:
    period = len(rows)
    pairs = rows.view(period // 2, 2, period)
    return torch.einsum("prjw,pjh->prhw", columns.view(-1, 2 * period, 2, period), pairs).reshape(period**2, -1)
