"""A training inside somebody's own script leaves random numbers, autocast and accelerate as they were, and takes none of them over."""

import contextlib
import math

import pytest
import torch
from accelerate import Accelerator, PartialState

from icthp import trainer
from test_trainer import fitted, line


def tiny(steps=2, **options):
    torch.manual_seed(7)
    x, model = torch.rand(4, 8), torch.nn.Linear(8, 1)
    return trainer.train(model, lambda m, _: (m(x + torch.rand(4, 8)).square().mean(), {}), steps=steps, lr=0.1, **options)


def test_the_callers_accelerator_keeps_its_settings():
    """Another precision and another accumulation of gradients; neither reaches the trainer."""
    plain = tiny()
    mine = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=4)
    layer, x = torch.nn.Linear(8, 8), torch.rand(4, 8)
    assert tiny() == plain
    with mine.autocast():
        assert layer(x).dtype == torch.bfloat16
    assert mine.mixed_precision == "bf16" and mine.gradient_accumulation_steps == 4
    assert Accelerator(cpu=True, gradient_accumulation_steps=4).mixed_precision == "bf16"  # as accelerate shares it
    for state in (mine.state, mine.gradient_state, PartialState()):
        type(state)._shared_state.clear()


def test_training_leaves_no_device_to_the_accelerators_that_follow():
    before = dict(PartialState._shared_state)
    PartialState._shared_state.clear()
    tiny()
    assert PartialState._shared_state == {}
    PartialState._shared_state.update(before)


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_random_numbers_go_on(fails):
    model, state = torch.nn.Linear(8, 1), torch.get_rng_state()
    loss_fn = lambda m, _: (m(torch.rand(4, 8)).square().mean() * (math.nan if fails else 1), {})
    with pytest.raises(FloatingPointError) if fails else contextlib.nullcontext():
        trainer.train(model, loss_fn, steps=2, lr=0.1)
    assert torch.equal(torch.get_rng_state(), state)


def test_neither_the_callers_seed_nor_its_environment_changes_the_numbers(monkeypatch):
    def numbers(seed):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 1)
        torch.manual_seed(seed)
        return trainer.train(model, lambda m, _: (m(torch.rand(4, 8)).square().mean(), {}), steps=3, lr=0.1)

    first = numbers(1)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert numbers(2) == first


def test_an_error_gives_the_model_back_as_it_was():
    """Without the autocast that it was trained in, and with the caller's random numbers."""
    model, x = torch.nn.Linear(8, 8), torch.rand(3, 8)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        trainer.train(model, lambda m, i: (_ for _ in ()).throw(KeyboardInterrupt), steps=2, lr=0.1, precision="bf16")
    assert model(x).dtype == torch.float32 and torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_callers_autocast_changes_nothing(precision):
    with torch.autocast("cpu", torch.bfloat16):
        inside = fitted(line(), precision=precision)
        assert torch.is_autocast_enabled("cpu")
    assert inside == fitted(line(), precision=precision) and inside[-1] < inside[0]
