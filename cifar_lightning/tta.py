"""Test-time augmentation (TTA): logits averaged over several versions of each image."""

from collections.abc import Callable

import torch
from jaxtyping import Float
from torch import Tensor

from cifar_lightning.augment import Images, translate
from cifar_lightning.metrics import as_float


@torch.no_grad()
def augmented_logits(
    classify: Callable[[Images], Tensor], images: Images, *, level: int
) -> tuple[Float[Tensor, "n k"], Float[Tensor, "n k"]]:
    """Test-time augmentation: the logits of the images, and a weighted mean of the logits of several crops of each.

    Args:
        classify: Raw uint8 images -> logits (N, K), such as an ``ImageClassifier`` in evaluation mode.
        images: Batch of images.
        level: 0 for the images alone. 1 for the images and their mirror images, with weights of 1/2. 2 for six crops:
            the images and their mirror images with weights of 1/4; and with weights of 1/8 the images moved by one
            pixel, up and left or down and right, with reflected borders, and the mirror images of these.

    Returns:
        The plain and the augmented logits, in float32; at level 0 both are the same tensor.

    Raises:
        ValueError: If ``level`` is not 0, 1 or 2.

    Source: Jordan 2024 (arXiv:2404.00498), "multi-crop evaluation", for level 2.
    """
    if level not in (0, 1, 2):
        raise ValueError(f"level must be 0, 1 or 2, got {level}")

    def with_mirror_image(crop: Images, logits: Tensor) -> Tensor:
        return (logits + as_float(classify(crop.flip(-1)))) / 2

    plain = as_float(classify(images))
    if level == 0:
        return plain, plain
    centred = with_mirror_image(images, plain)
    if level == 1:
        return plain, centred
    crops = [translate(images, dy=shift, dx=shift) for shift in (-1, 1)]
    moved = [with_mirror_image(crop, as_float(classify(crop))) for crop in crops]
    return plain, centred / 2 + (moved[0] + moved[1]) / 4
