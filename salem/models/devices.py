"""Resolves the device name of the settings to a torch device. Must not know models."""

from __future__ import annotations

import torch

from salem.errors import Misconfigured


def resolve_device(device: str) -> torch.device:
    """`auto` is the first CUDA device if there is one, else the CPU. A GPU gets its index, as on tensors.

    Raises:
        Misconfigured: torch does not see this GPU.
    """
    # The driver may count GPUs that torch cannot use.
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if num_gpus else "cpu"
    place = torch.device(device)
    if place.type != "cuda":
        return place
    index = place.index or 0
    if index >= num_gpus:
        raise Misconfigured(
            f"SALEM_DEVICE={device}, but torch sees {num_gpus or 'no'} GPUs",
            remedy="set another SALEM_DEVICE, or install torch with CUDA; `salem doctor` shows more",
        )
    return torch.device("cuda", index)
