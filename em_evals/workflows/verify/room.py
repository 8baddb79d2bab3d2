"""Check whether memory and disk have room for a second, larger copy of a model."""

from __future__ import annotations

import shutil
from pathlib import Path

import torch

from em_evals.content.cards import ModelCard
from em_evals.models.bases import choose_device
from em_evals.models.memory import available

_BYTES = 4
_SPARE = 1.2


def room_for_copy(parameters: int, card: ModelCard) -> bool:
    """Check whether a float32 copy fits in the device's memory, with a fifth to spare; True where that is unknown."""
    need = _SPARE * _BYTES * parameters
    device = choose_device(card.engine.device)
    if device.type == "cuda":
        return torch.cuda.mem_get_info(device)[0] > need
    return available() > need


def room_on_disk(parameters: int, folder: Path) -> bool:
    """Check whether a float32 checkpoint fits on the disk, and as much again."""
    return shutil.disk_usage(folder).free > 2 * _BYTES * parameters
