"""The precision that is fast on a device."""

import functools

import torch


@functools.cache
def multiplies_bf16(device_type: str) -> bool:
    """Whether devices of a type, ``cpu`` or ``cuda``, multiply bfloat16 natively.

    On a CPU without such instructions torch falls back to reference kernels, slower by orders of magnitude.
    """
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and (torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported())


def fast_precision(accelerator: str) -> str:
    """Lightning's name of the precision that ``trainer.precision=auto`` stands for on an accelerator.

    ``bf16-mixed`` where the hardware multiplies bfloat16 natively, else ``32-true``.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        device_type = "cuda"
    elif accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        device_type = "cpu"
    else:
        device_type = "other"
    return "bf16-mixed" if multiplies_bf16(device_type) else "32-true"
