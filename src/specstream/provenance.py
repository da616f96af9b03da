"""What a number was measured with: versions, machine, device and dtype."""

from __future__ import annotations

import platform

from specstream.distribution import VERSION
from specstream.environment import installed, level, processor_model


def provenance(device: str | None = None, dtype: str | None = None) -> dict[str, object]:
    """Describe the software and the machine of this process, as plain values that JSON can hold.

    Args:
        device: The torch device a measurement ran on, such as `cpu` or `cuda:0`; names the accelerator too.
        dtype: The weights' dtype, such as `bfloat16`.
    """
    import torch

    return {
        "specstream": VERSION,
        "torch": torch.__version__,
        "transformers": installed("transformers"),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "cpu": processor_model(),
        "cpu_level": level().name,
        "threads": torch.get_num_threads(),
        "device": device,
        "accelerator": _accelerator(device),
        "dtype": dtype,
    }


def _accelerator(device: str | None) -> str | None:
    import torch

    if device is None or not device.startswith("cuda") or not torch.cuda.is_available():
        return None
    return torch.cuda.get_device_name(device)
