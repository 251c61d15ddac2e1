"""A block that neither feels nor changes the caller's random numbers, autocast and accelerate settings."""

import contextlib
import os

import torch
import torch.distributed as dist
from accelerate import PartialState
from accelerate.state import AcceleratorState, GradientState


@contextlib.contextmanager
def isolated():
    """Also a decorator. Inside, torch's random numbers, its autocast and accelerate's settings are this block's own; afterwards the
    caller's are restored, after an error too. Only a process group that the launch asks for remains."""
    with contextlib.ExitStack() as stack:
        stack.enter_context(_own_accelerate())
        stack.enter_context(_own_random_numbers())
        for kind in ("cpu", "cuda"):
            if torch.is_autocast_enabled(kind):
                stack.enter_context(torch.autocast(kind, enabled=False))
        yield


@contextlib.contextmanager
def _own_accelerate():
    """Fresh dictionaries for what accelerate shares between all its objects; the caller's Accelerator keeps its own."""
    states = [AcceleratorState, GradientState]
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        states.append(PartialState)  # holds the device, which a training on the CPU would set for all that follow
    before = [state._shared_state for state in states]
    for state in states:
        state._shared_state = type(state._shared_state)()
    try:
        yield
    finally:
        for state, shared in zip(states, before):
            state._shared_state = shared


@contextlib.contextmanager
def _own_random_numbers():
    cuda = torch.cuda.is_initialized()
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else []):
            yield
    finally:
        if not cuda:
            torch.cuda.manual_seed_all(torch.initial_seed())  # which waits until CUDA starts, as the caller's own seed did
