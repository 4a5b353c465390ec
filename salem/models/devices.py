"""Where models are loaded: a name of the settings as a device that torch has.

Knows torch's GPUs. Does not know models.
"""

from __future__ import annotations

import torch

from salem.errors import Misconfigured


def resolve_device(device: str) -> torch.device:
    """`auto` is the first CUDA device where there is one, else the CPU. A GPU has its number, as on tensors.

    Raises:
        Misconfigured: torch sees no such GPU.
    """
    # A driver may count GPUs that torch cannot use.
    num_gpus = torch.cuda.device_count() if torch.cuda.is_available() else 0
    if device == "auto":
        device = "cuda" if num_gpus else "cpu"
    place = torch.device(device)
    if place.type != "cuda":
        return place
    index = place.index or 0
    if index >= num_gpus:
        raise Misconfigured(
            f"the device is to be {device}, and torch sees {num_gpus or 'no'} GPUs",
            remedy="set SALEM_DEVICE, or install torch with CUDA; `salem doctor` says what torch finds",
        )
    return torch.device("cuda", index)
