"""Where a run of the trainer keeps itself: its newest state in one file, the weights of its lowest validation loss in another beside it."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from diffusers.training_utils import EMAModel
from torch import Tensor, nn

from icthp.files import atomic, fingerprint

KEYS = {"config", "model", "optimizer", "history"}
REPEATED = {"loss": 1e-3, "grad_norm": 1e-2}  # what step 0 must give again, and how nearly


class Checkpoint:
    """The state of one run in `path`, or nowhere for None. config: plain values that a resumed run must have in common with it; the digest
    of the model's first weights joins them."""

    def __init__(self, path, model: nn.Module, optimizer: torch.optim.Optimizer, average: EMAModel | None, config: dict):
        self.path = None if path is None else Path(path)
        self.model, self.optimizer, self.average = model, optimizer, average
        if self.path:
            self.best = self.path.with_name(self.path.name.removesuffix(".pt") + ".best.pt")
            self.config = {name: _plain(value) for name, value in config.items()} | {"model": fingerprint(model)}

    def save(self, history: list[dict]) -> None:
        state = {"config": self.config, "model": _trained(self.model), "optimizer": self.optimizer.state_dict(), "history": history}
        if self.average:
            state["ema"] = self.average.state_dict()
        atomic(self.path, lambda partial: torch.save(state, partial))

    def resume(self, gradient: Callable[[int], dict]) -> list[dict]:
        """Put the saved state into model, optimiser and average; returns the history so far, [] where nothing is saved. gradient(step) ->
        record, the trainer's: step 0 is repeated. ValueError for the checkpoint of another run, and for a damaged one."""
        if self.path is None or not self.path.exists():
            return []
        state = self._read(self.path, KEYS)
        if differences := _differences(state["config"], self.config):
            raise ValueError(f"{self.path} is another run's: {differences}; delete it to start again")
        self._compare_first_step(state["history"][0], gradient(0))
        self.optimizer.zero_grad()
        self.model.load_state_dict(self.model.state_dict() | state["model"])
        self.optimizer.load_state_dict(state["optimizer"])
        if self.average:
            self.average.load_state_dict(state["ema"])
            self.average.to(next(self.model.parameters()).device)
        return state["history"]

    def save_best(self) -> None:
        if self.path:
            atomic(self.best, lambda partial: torch.save(_trained(self.model), partial))

    def read_best(self) -> dict[str, Tensor]:
        """ValueError where they are missing or damaged."""
        return self._read(self.best)

    def restore_best(self) -> None:
        self.model.load_state_dict(self.model.state_dict() | self.read_best())

    def _read(self, file: Path, keys=frozenset()) -> dict:
        """What torch.save wrote, on the CPU."""
        try:
            state = torch.load(file, map_location="cpu", weights_only=True)
        except Exception as error:  # a damaged file may raise anything
            reason = str(error).partition("\n")[0][:200] or type(error).__name__
            raise ValueError(f"{file} is missing, cut or damaged: delete {self.path} to start again ({reason})") from error
        if keys and "recipe" in state:  # as 0.1.0 called the config
            raise ValueError(f"{file} is a run of icthp 0.1.0: finish it with that version, or delete it to start again")
        if not isinstance(state, dict) or keys - state.keys():
            raise ValueError(f"{file} is no checkpoint of this trainer: delete it to start again")
        return state

    def _compare_first_step(self, saved: dict, repeated: dict) -> None:
        for name, tolerance in REPEATED.items():
            if not math.isclose(saved[name], repeated[name], rel_tol=tolerance, abs_tol=1e-7):
                numbers = f"{self.path} began with {name} {saved[name]:.6g}, this run with {repeated[name]:.6g}"
                raise ValueError(f"{numbers}: its data, model or loss is another; delete it to start again")


def _plain(value):
    """A number of numpy as Python's, which a checkpoint can hold."""
    return value.item() if hasattr(value, "item") else value


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The state without what is frozen."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def _differences(saved: dict, current: dict) -> str:
    """ "lr: was 0.1, is 0.2; ...", or "" for equal configs."""
    differences = []
    for name in saved | current:
        before = saved.get(name, "absent")
        after = current.get(name, "absent")
        if before != after:
            differences.append(f"{name}: was {before!r}, is {after!r}")
    return "; ".join(differences)
