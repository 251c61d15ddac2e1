"""Muon and AdamW as one optimiser: each moves its own parameters as torch's would, and a saved state goes on."""

import copy

import pytest
import torch
from torch import nn

from icthp import optimizers, trainer

OPTIONS = {"lr": 0.01, "betas": (0.9, 0.98), "weight_decay": 0.1}


def network() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(6, 8), nn.Tanh(), nn.Sequential(nn.Linear(8, 8), nn.Tanh()), nn.Linear(8, 1))


def step(model, optimizer, times=1):
    for _ in range(times):
        optimizer.zero_grad()
        model(torch.ones(4, 6)).square().sum().backward()
        optimizer.step()


def test_each_part_moves_as_torch_moves_it():
    model, twin = network(), network()
    step(model, optimizers.build(model, muon="2.0", **OPTIONS), 3)
    muon = torch.optim.Muon([twin[2][0].weight], lr=0.01, weight_decay=0.1, adjust_lr_fn="match_rms_adamw")
    adamw = torch.optim.AdamW([p for name, p in twin.named_parameters() if name != "2.0.weight"], **OPTIONS)
    for _ in range(3):
        twin.zero_grad()
        twin(torch.ones(4, 6)).square().sum().backward()
        muon.step()
        adamw.step()
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), twin.parameters()))


def test_a_learning_rate_from_outside_reaches_both_parts_also_after_loading():
    model = network()
    optimizer = optimizers.build(model, muon="2.0", **OPTIONS)
    step(model, optimizer)
    saved, weights = copy.deepcopy(optimizer.state_dict()), copy.deepcopy(model.state_dict())
    step(model, optimizer)
    again = network()
    again.load_state_dict(weights)
    resumed = optimizers.build(again, muon="2.0", **OPTIONS)
    resumed.load_state_dict(saved)
    step(again, resumed)
    assert all(torch.equal(a, b) for a, b in zip(model.parameters(), again.parameters()))
    for group in resumed.param_groups:
        group["lr"] = 0.0
    before = copy.deepcopy(again.state_dict())
    step(again, resumed)
    assert all(torch.equal(before[name], value) for name, value in again.state_dict().items())


def test_without_muon_it_is_adamw():
    assert type(optimizers.build(network(), **OPTIONS)) is torch.optim.AdamW


def test_a_name_that_no_matrix_has():
    with pytest.raises(ValueError, match="no trained matrix has a name that contains it"):
        optimizers.build(network(), muon="blocks", **OPTIONS)


def test_a_killed_run_with_muon_and_an_average_goes_on_to_the_same_weights(tmp_path):
    def loss(model, i):
        if stop_at == i:
            raise KeyboardInterrupt
        return model(torch.randn(4, 6)).square().mean(), {}

    def run(model, path):
        return trainer.train(model, loss, steps=8, lr=0.01, warmup=2, muon="2.0", ema=0.9, checkpoint=path, save_every=2)

    whole, killed, stop_at = network(), network(), None
    run(whole, tmp_path / "whole.pt")
    stop_at = 5
    with pytest.raises(KeyboardInterrupt):
        run(killed, tmp_path / "killed.pt")
    killed, stop_at = network(), None
    run(killed, tmp_path / "killed.pt")
    assert all(torch.equal(a, b) for a, b in zip(whole.parameters(), killed.parameters()))
