"""What the jobs of a sweep get of this machine; ``conf/hydra/launcher/*.yaml`` ask for it."""

import math
from collections.abc import Sequence

from omegaconf import OmegaConf

from cifar_lightning.cores import num_cores

_OF_GPUS = ("auto", "gpu", "cuda")
"""Values of ``trainer.accelerator`` by which a job takes GPUs where there are any."""


def gpus() -> int:
    """The GPUs that this process sees."""
    import torch  # late, as it takes seconds

    return torch.cuda.device_count()


def jobs_at_once(num_threads: int | None) -> int:
    """How many jobs of so many threads share the cores of this machine; None: of one, as most steps are small."""
    return max(1, num_cores() // (num_threads or 1))


def gpus_per_job(num_gpus: int, accelerator: str, devices: int | str | Sequence[int] | None) -> int:
    """The GPUs of a job: as many as it has devices, and one where it takes all that it sees.

    Args:
        num_gpus: Those of all jobs together.
        accelerator: As of ``trainer``.
        devices: Likewise: a number, a list of devices, ``auto`` or -1.
    """
    if num_gpus == 0 or accelerator not in _OF_GPUS:
        return 0
    if isinstance(devices, str):
        return int(devices) if devices.isdigit() else devices.count(",") + 1
    return max(1, devices if isinstance(devices, int) else len(devices or ()))


def cores_per_job(num_threads: int | None, num_gpus: int, gpus_per_job: float) -> int:
    """The cores of a job: an equal share, where as many jobs run at once as the cores and the GPUs allow.

    Args:
        num_threads: Of a job; None for one at least.
        num_gpus: Those of all jobs together.
        gpus_per_job: A job's; 0 if it takes none.
    """
    jobs = jobs_at_once(num_threads)
    if gpus_per_job:
        jobs = max(1, min(jobs, math.floor(num_gpus / gpus_per_job + 1e-9)))
    return num_cores() // jobs


for _resolver in (num_cores, gpus, jobs_at_once, gpus_per_job, cores_per_job):
    OmegaConf.register_new_resolver(_resolver.__name__, _resolver, replace=True)
