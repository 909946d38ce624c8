"""The device a run is on: the precision, the threads and the memory allocation that are fast there."""

import ctypes
import functools
import os
import platform
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path

import torch
from jaxtyping import Shaped
from torch import Tensor, nn
from torch.utils.flop_counter import FlopCounterMode


@functools.cache
def multiplies_bf16(device_type: str) -> bool:
    """Whether devices of a type, ``cpu`` or ``cuda``, multiply bfloat16 natively.

    On a CPU without such instructions torch falls back to reference kernels, slower by orders of magnitude.
    """
    if device_type == "cuda":
        return torch.cuda.is_available() and torch.cuda.is_bf16_supported(including_emulation=False)
    return device_type == "cpu" and bool(_cpu_flags() & {"avx512_bf16", "amx_bf16"})


def _cpu_flags() -> set[str]:
    """Names of the CPU's instruction sets: as torch says from 2.15 on, else as Linux does."""
    if hasattr(torch.cpu, "get_capabilities"):
        return {name for name, value in torch.cpu.get_capabilities().items() if value is True}
    return set(_cpuinfo("flags").split())


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


_RANKS = ("RANK", "LOCAL_RANK", "SLURM_PROCID", "SLURM_LOCALID", "JSM_NAMESPACE_RANK")
_SIZES = ("WORLD_SIZE", "LOCAL_WORLD_SIZE", "SLURM_NTASKS", "SLURM_NTASKS_PER_NODE", "JSM_NAMESPACE_SIZE")
"""Variables in which launchers tell a process which one it is, from 0, and of how many. Lightning believes them."""

_INTERACTIVE_JOBS = ("bash", "interactive")
"""SLURM's names of jobs in which one types commands; their tasks are not those of a command."""


def refuse_several_processes(environment: Mapping[str, str]) -> None:
    """Refuse to be one of several processes, or to be taken for one because of a variable that was left behind.

    Raises:
        ValueError: If ``environment``, that of this process, says so.
    """
    is_interactive = environment.get("SLURM_JOB_NAME") in _INTERACTIVE_JOBS
    sizes = [name for name in _SIZES if not (is_interactive and name.startswith("SLURM_"))]
    found = {name: environment[name] for name in _RANKS if environment.get(name, "0").strip() != "0"}
    found |= {name: environment[name] for name in sizes if environment.get(name, "1").strip() != "1"}
    if found:
        variables = " ".join(f"{name}={value}" for name, value in found.items())
        raise ValueError(
            f"{variables} in the environment: this would be one of several processes, which train.py and evaluate.py "
            "are where torchrun or srun starts them; start one process, as with srun --ntasks=1 or torchrun "
            f"--nproc-per-node=1; or, if none is meant, type: unset {' '.join(found)}"
        )


MAX_THREADS = 1024
"""More than a run can use; OpenMP ends the process where it cannot start as many as it is told to."""

SMALL_BATCH_FLOPS = 10_000_000
"""A batch whose forward pass takes less is not worth sharing out between threads.

Measured with the tutorial's network, 1.3 MFLOP an image: batches of 4 take one thread as long as two, batches of 16
1.2 times as long. But beside one other busy process two threads take five times as long, since each of some fifty
operations a step waits for the one that was put aside.
"""

_M_TRIM_THRESHOLD, _M_MMAP_MAX = -1, -4
_DEFAULT_TRIM_THRESHOLD, _DEFAULT_MMAP_MAX = 128 * 1024, 65_536
"""Parameters of glibc's mallopt and their defaults, see malloc.h and mallopt(3)."""


def forward_flops(net: nn.Module, images: Shaped[Tensor, "n c h w"]) -> int:
    """Floating-point operations of a forward pass in evaluation mode: two for each multiplication with its addition."""
    was_training = net.training
    with FlopCounterMode(display=False) as counter, torch.no_grad():
        net.eval()(images)
    net.train(was_training)
    return counter.get_total_flops()


def sensible_threads(flops_per_batch: int, num_processes: int = 1) -> int:
    """CPU threads for batches with a forward pass of so many operations: one, or what torch takes by itself.

    Args:
        flops_per_batch: Those operations.
        num_processes: Which share the CPUs. OMP_NUM_THREADS, where it is set, is the number for each.
    """
    if flops_per_batch < SMALL_BATCH_FLOPS:
        return 1
    shared = 1 if "OMP_NUM_THREADS" in os.environ else num_processes
    return max(1, torch.get_num_threads() // shared)


@contextmanager
def threads(num: int | None) -> Iterator[None]:
    """Have torch use so many CPU threads meanwhile; None changes nothing."""
    before = torch.get_num_threads()
    torch.set_num_threads(num or before)
    try:
        yield
    finally:
        torch.set_num_threads(before)


@contextmanager
def keeping_freed_memory(device: torch.device) -> Iterator[None]:
    """Have the C library keep what this process frees, for the next step to use; where a CPU does the work.

    glibc by itself maps each block of more than 32 MB anew and returns it when freed, so that in each step the system
    has to clear every page of large activations once more: on a virtual machine that took 40 % of a step of
    airbench94. The most that a process holds hardly grows. At the end the memory goes back to the system, and glibc has
    its default thresholds again, though it no longer adapts them by itself. Without glibc nothing is done.
    """
    if device.type != "cpu" or platform.libc_ver()[0] != "glibc":
        yield
        return
    libc = ctypes.CDLL(None)
    libc.mallopt(_M_MMAP_MAX, 0)  # no maps of their own
    libc.mallopt(_M_TRIM_THRESHOLD, -1)  # never trimmed
    try:
        yield
    finally:
        libc.mallopt(_M_MMAP_MAX, _DEFAULT_MMAP_MAX)
        libc.mallopt(_M_TRIM_THRESHOLD, _DEFAULT_TRIM_THRESHOLD)
        libc.malloc_trim(0)


_GROUP_FILES = (("memory.max", "memory.current", ""), ("memory.limit_in_bytes", "memory.usage_in_bytes", "total_"))
"""Of a control group of version 2 or 1: files of its limit and its use, and how keys of ``memory.stat`` begin."""


def free_memory(root: Path = Path("/")) -> int:
    """Bytes that this process may still take, those of the system's file cache among them.

    Linux says how many are available. A control group, such as a container's or a job's, may allow fewer. Other systems
    do not say it to all, so all of the machine's memory counts there.
    """
    try:
        found = [1024 * int(_value(root / "proc/meminfo", "MemAvailable:"))]
        groups = (root / "proc/self/cgroup").read_text().splitlines()
    except (OSError, ValueError):
        return os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
    for _, controllers, path in (line.split(":", 2) for line in groups):
        if controllers in ("", "memory"):
            group = root / "sys/fs/cgroup" / controllers / path.lstrip("/")
            found += [_left(folder, *names) for folder in (group, *group.parents) for names in _GROUP_FILES]
    return max(0, min(found))


def _left(group: Path, limit: str, used: str, prefix: str) -> int:
    """Bytes that a control group leaves to its processes; more than any machine has where it sets no limit."""
    with suppress(OSError, ValueError):  # no such group or no number
        caches = (f"{prefix}inactive_file ", f"{prefix}active_file ")
        reclaimable = sum(int(_value(group / "memory.stat", key)) for key in caches)
        return int((group / limit).read_text()) - int((group / used).read_text()) + reclaimable
    return 2**63


def _value(file: Path, key: str) -> str:
    """The first word after a key at the start of a line; empty where there is none."""
    lines = file.read_text().splitlines()
    return next((line.removeprefix(key).split()[0] for line in lines if line.startswith(key)), "")


@contextmanager
def restored_backends() -> Iterator[None]:
    """Put back what Lightning's Trainer sets for the whole process: cuDNN's benchmark and deterministic algorithms."""
    benchmark = torch.backends.cudnn.benchmark
    deterministic = torch.are_deterministic_algorithms_enabled()
    warns_only = torch.is_deterministic_algorithms_warn_only_enabled()
    try:
        yield
    finally:
        torch.backends.cudnn.benchmark = benchmark
        torch.use_deterministic_algorithms(deterministic, warn_only=warns_only)


def device_name(device: torch.device) -> str:
    """What a person would call the device, such as ``NVIDIA H100`` or ``AMD EPYC 9554 (2 threads)``."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    if device.type != "cpu":
        return device.type
    num = torch.get_num_threads()
    return f"{_cpu_name()} ({num} thread{'s' * (num > 1)})"


def _cpu_name() -> str:
    return _cpuinfo("model name") or platform.processor() or platform.machine()


def _cpuinfo(key: str) -> str:
    """A value of the first CPU that Linux describes; empty where there is none."""
    cpuinfo = Path("/proc/cpuinfo")
    lines = cpuinfo.read_text().splitlines() if cpuinfo.exists() else []
    return next((line.partition(":")[2].strip() for line in lines if line.startswith(key)), "")
