"""Muon for the matrices inside a network's blocks, AdamW for all else: one optimiser, as far as a training loop can see."""

import torch
from torch import nn


class MuonWithAdamW(torch.optim.Optimizer):
    """torch.optim.Muon (Jordan et al. 2024) for `matrices`, its step scaled to AdamW's (arXiv 2502.16982), so that both share a learning
    rate; torch.optim.AdamW for `others`. ValueError where either is empty, and for a matrix that has not two dimensions."""

    def __init__(self, matrices: list[nn.Parameter], others: list[nn.Parameter], *, lr: float, betas, weight_decay: float):
        muon = torch.optim.Muon(matrices, lr=lr, weight_decay=weight_decay, adjust_lr_fn="match_rms_adamw")
        self.parts = [muon, torch.optim.AdamW(others, lr=lr, betas=betas, weight_decay=weight_decay)]
        super().__init__(self._groups(), {})
        for part, group in zip(self.parts, self.param_groups):
            part.param_groups = [group]

    def _groups(self) -> list[dict]:
        return [group for part in self.parts for group in part.param_groups]

    def step(self, closure=None) -> None:
        for part in self.parts:
            part.step()

    def state_dict(self) -> dict:
        return {"parts": [part.state_dict() for part in self.parts]}

    def load_state_dict(self, state_dict: dict) -> None:
        for part, state in zip(self.parts, state_dict["parts"], strict=True):
            part.load_state_dict(state)
        self.param_groups = self._groups()  # new ones, which a learning rate set from outside must reach


def build(model: nn.Module, *, lr: float, betas, weight_decay: float, muon: str = "") -> torch.optim.Optimizer:
    """AdamW for the parameters of `model` that require a gradient; where `muon` is given, `MuonWithAdamW`, which moves by Muon the matrices
    whose names contain that text. ValueError where none does."""
    options = {"lr": lr, "betas": betas, "weight_decay": weight_decay}
    trained = {name: p for name, p in model.named_parameters() if p.requires_grad}
    if not muon:
        return torch.optim.AdamW(trained.values(), **options)
    matrices = [p for name, p in trained.items() if muon in name and p.ndim == 2]
    if not matrices:
        raise ValueError(f"muon={muon!r}, but no trained matrix has a name that contains it")
    chosen = set(map(id, matrices))
    return MuonWithAdamW(matrices, [p for p in trained.values() if id(p) not in chosen], **options)
