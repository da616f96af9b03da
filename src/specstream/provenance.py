"""What a number was measured with: versions, machine, device and dtype."""

from __future__ import annotations

import platform
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path


def provenance(device: str | None = None, dtype: str | None = None) -> dict[str, object]:
    """Describe the software and the machine of this process, as plain values that JSON can hold.

    Args:
        device: The torch device a measurement ran on, such as `cpu` or `cuda:0`; names the accelerator too.
        dtype: The weights' dtype, such as `bfloat16`.
    """
    import torch

    return {
        "specstream": _version("specstream"),
        "torch": torch.__version__,
        "transformers": _version("transformers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": _cpu_model(),
        "threads": torch.get_num_threads(),
        "device": device,
        "accelerator": _accelerator(device),
        "dtype": dtype,
    }


def processor() -> str:
    """What this machine's processor can do, as its kernel lists it: kernels are built for that and chosen by it."""
    return _cpu_line("flags", "Features") or platform.processor()


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def _cpu_model() -> str:
    # platform.processor() is empty or only the architecture on most Linux systems.
    return _cpu_line("model name").partition(":")[2].strip() or platform.processor() or platform.machine()


def _cpu_line(*names: str) -> str:
    """The first line of /proc/cpuinfo that begins like this; empty where there is none."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return ""
    return next((line for line in lines if line.startswith(names)), "")


def _accelerator(device: str | None) -> str | None:
    import torch

    if device is None or not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(device)
