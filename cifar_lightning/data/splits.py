"""Which training images are set aside for validation."""

import torch
from jaxtyping import Int64
from torch import Tensor


def stratified_split(
    targets: Int64[Tensor, " n"], *, val_size: int, seed: int
) -> tuple[Int64[Tensor, " t"], Int64[Tensor, " v"]]:
    """Indices of the training images and of the validation images, both ascending.

    Each class gives its share of ``val_size``. Where the shares are not whole, the largest remainders are rounded up.

    Raises:
        ValueError: If ``val_size`` is not in [0, N).
    """
    if not 0 <= val_size < len(targets):
        raise ValueError(f"val_size must be in [0, {len(targets)}), got {val_size}")
    counts = torch.bincount(targets)
    shares = counts * val_size // len(targets)
    remainders = counts * val_size % len(targets)
    shares[remainders.argsort(descending=True, stable=True)[: val_size - int(shares.sum())]] += 1
    return _chosen(targets, shares, seed=seed)


def fifth_of_each_class(targets: Int64[Tensor, " n"], *, seed: int) -> tuple[Int64[Tensor, " t"], Int64[Tensor, " v"]]:
    """As ``stratified_split``, with a fifth of each class for validation, rounded down: none of fewer than 5 images."""
    return _chosen(targets, torch.bincount(targets) // 5, seed=seed)


def _chosen(
    targets: Int64[Tensor, " n"], shares: Int64[Tensor, " k"], *, seed: int
) -> tuple[Int64[Tensor, " t"], Int64[Tensor, " v"]]:
    """The split in which each class gives so many images, drawn at random."""
    generator = torch.Generator().manual_seed(seed)
    shuffled = torch.randperm(len(targets), generator=generator)
    by_class = [shuffled[targets[shuffled] == k] for k in range(len(shares))]
    val = torch.cat([members[:share] for members, share in zip(by_class, shares.tolist(), strict=True)])
    is_val = torch.zeros(len(targets), dtype=torch.bool)
    is_val[val] = True
    return (~is_val).nonzero().flatten(), is_val.nonzero().flatten()
