"""Shell: one GPU for every worker process, chosen without importing torch."""

import os
from pathlib import Path
from typing import Any

VISIBLE = "CUDA_VISIBLE_DEVICES"
_DRIVER_FOLDER = Path("/proc/driver/nvidia/gpus")


def gpu_of_worker(index: int, visible: str | None, num_gpus: int) -> str | None:
    """Choose what `CUDA_VISIBLE_DEVICES` should say in a worker.

    Args:
        index: Number of the worker on its machine, from 0.
        visible: What the variable says to the driver; None if it is not set.
        num_gpus: GPUs of the machine; counts only where `visible` is None.

    Returns:
        One device; workers beyond the number of GPUs begin again with the first. None where there
        is no GPU, or none may be used.
    """
    if visible is None:
        devices = [str(number) for number in range(num_gpus)]
    else:
        devices = [name.strip() for name in visible.split(",") if name.strip()]
    return devices[index % len(devices)] if devices else None


def count_gpus() -> int:
    """Count NVIDIA GPUs by the driver's folder; 0 where there is none."""
    return sum(1 for _ in _DRIVER_FOLDER.iterdir()) if _DRIVER_FOLDER.is_dir() else 0


def take_gpu(worker_name: Any, visible: str | None, num_gpus: int) -> None:
    """Keep this worker process to one GPU; must run before CUDA is first used.

    Does nothing for a worker whose name is no number, which others have started.
    """
    if isinstance(worker_name, int):
        device = gpu_of_worker(worker_name, visible, num_gpus)
        if device is not None:
            os.environ[VISIBLE] = device
