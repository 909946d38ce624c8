"""The device a run is on, and the precision that is fast there."""

import platform
from pathlib import Path

import torch


def fast_precision(accelerator: str) -> str:
    """Lightning's name of the precision that ``trainer.precision=auto`` stands for on an accelerator.

    ``bf16-mixed`` where the hardware multiplies bfloat16 natively, else ``32-true``: on a CPU without such
    instructions a bfloat16 convolution falls back to a reference kernel, slower by orders of magnitude.
    """
    if accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available():
        has_fast_bf16 = torch.cuda.is_bf16_supported(including_emulation=False)
    elif accelerator == "cpu" or (accelerator == "auto" and not torch.backends.mps.is_available()):
        has_fast_bf16 = torch.cpu._is_avx512_bf16_supported() or torch.cpu._is_amx_tile_supported()
    else:
        has_fast_bf16 = False
    return "bf16-mixed" if has_fast_bf16 else "32-true"


def device_name(device: torch.device) -> str:
    """What a person would call the device, such as ``NVIDIA H100`` or ``AMD EPYC 9554 (2 threads)``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    return f"{_cpu_name()} ({torch.get_num_threads()} threads)"


def _cpu_name() -> str:
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    names = (line.partition(":")[2].strip() for line in lines if line.startswith("model name"))
    return next(names, platform.processor() or platform.machine())
