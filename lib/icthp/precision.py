"""The arithmetic of a run, by accelerate's names of precision."""

import contextlib

import torch
from torch import nn

DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}


def autocast(device, precision: str) -> torch.autocast:
    """A training's arithmetic of this precision on a device."""
    return torch.autocast(torch.device(device).type, torch.bfloat16, enabled=precision == "bf16")


@contextlib.contextmanager
def own_forward(model: nn.Module):
    """Inside, the model's forward is its own again: accelerate's runs under autocast and gives float32, which what comes after a model of
    16 bits may not take (a decoder, after a generator's transformer)."""
    if not hasattr(model, "_original_forward"):  # nothing was prepared: full precision
        yield
        return
    prepared = model.forward
    model.forward = model._original_forward
    try:
        yield
    finally:
        model.forward = prepared
