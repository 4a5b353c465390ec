"""Devices by their names in the settings."""

from __future__ import annotations

import pytest
import torch
from pydantic import ValidationError

from salem.errors import Misconfigured
from salem.models.devices import resolve_device
from salem.settings import Settings


def pretend(monkeypatch: pytest.MonkeyPatch, num_gpus: int) -> None:
    """Make torch count this many GPUs. If negative: the driver counts them, but torch cannot use them."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: abs(num_gpus))
    monkeypatch.setattr(torch.cuda, "is_available", lambda: num_gpus > 0)


@pytest.mark.parametrize(
    ("num_gpus", "device", "place"),
    [
        (0, "cpu", "cpu"),
        (0, "auto", "cpu"),
        (2, "cpu", "cpu"),
        (2, "auto", "cuda:0"),
        (2, "cuda", "cuda:0"),
        (2, "cuda:1", "cuda:1"),
        (-1, "auto", "cpu"),
    ],
)
def test_devices(monkeypatch: pytest.MonkeyPatch, num_gpus: int, device: str, place: str) -> None:
    pretend(monkeypatch, num_gpus)
    assert resolve_device(device) == torch.device(place)


@pytest.mark.parametrize(("num_gpus", "device"), [(2, "cuda:2"), (0, "cuda"), (-1, "cuda")])
def test_a_missing_gpu_is_refused(monkeypatch: pytest.MonkeyPatch, num_gpus: int, device: str) -> None:
    pretend(monkeypatch, num_gpus)
    with pytest.raises(
        Misconfigured, match=f"SALEM_DEVICE={device}, but torch sees {max(0, num_gpus) or 'no'} GPUs"
    ):
        resolve_device(device)


@pytest.mark.parametrize("device", ["gpu", "cuda:", "cuda:x", "", "meta"])
def test_an_unknown_device_is_not_a_valid_setting(device: str) -> None:
    with pytest.raises(ValidationError, match="device"):
        Settings(device=device)
