"""One training loop for every model of the project: the data of a step depends on its number alone, so a killed run
that starts again goes on to the same numbers."""

import math
from collections.abc import Callable
from pathlib import Path

import torch
from accelerate import Accelerator
from torch import Tensor, nn
from tqdm.auto import tqdm

from icthp.hub import DTYPES, atomic


def learning_rate(step: int, *, steps: int, peak: float, warmup: int = 0, schedule: str = "cosine") -> float:
    """Linear warm-up to `peak`, then "cosine" or "linear" decay to 0 at `steps`, or "constant"."""
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, steps - warmup)
    decay = {"cosine": 0.5 * (1 + math.cos(math.pi * progress)), "linear": 1 - progress, "constant": 1.0}
    if schedule not in decay:
        raise ValueError(f"schedule must be one of {', '.join(decay)}, not {schedule!r}")
    return peak * decay[schedule]


def batch_indices(step: int, *, n: int, size: int, seed: int = 0) -> Tensor:
    """(size,) int64: the rows of step `step` when n rows are shuffled anew each epoch and cut into batches; a last,
    short batch of an epoch is filled from the next one."""
    rows, start = [], step * size
    while len(rows) < size:
        epoch, offset = divmod(start + len(rows), n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
        rows += order[offset : offset + size - len(rows)]
    return torch.tensor(rows)


def fit(
    model: nn.Module,
    loss_at: Callable[[nn.Module, int], tuple[Tensor, dict]],
    *,
    steps: int,
    lr: float,
    warmup: int = 0,
    schedule: str = "cosine",
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.98),
    clip: float = 1.0,
    seed: int = 0,
    precision: str = "no",
    checkpoint=None,
    save_every: int = 100,
    label: str = "train",
    batch: Callable[[int], list] | None = None,
) -> list[dict]:
    """Train the parameters of `model` that require a gradient with AdamW; returns one record of numbers a step.

    loss_at(model, step) -> (scalar loss, dict of numbers to record). Random draws inside it (dropout too) are seeded
    by (seed, step). It runs where the model lies. With `checkpoint` (a path) the run saves every `save_every` steps and
    resumes from it, after it has repeated step 0 and found the same loss and gradient norm: a checkpoint of other data,
    another model or another loss is refused with ValueError. `precision`: "no", or "bf16" for autocast. A loss that is not
    finite stops the run with FloatingPointError before the weights change; it names the prompt ids batch(step), if given.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
    accelerator = Accelerator(mixed_precision=precision, cpu=next(model.parameters()).device.type == "cpu")
    trainable = [p for p in model.parameters() if p.requires_grad]
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(trainable, lr=lr, betas=betas, weight_decay=weight_decay))
    recipe = {"steps": steps, "lr": lr, "warmup": warmup, "schedule": schedule, "weight_decay": weight_decay, "seed": seed}
    model.train()

    def gradient(step: int) -> dict:
        torch.manual_seed(seed * 1_000_003 + step)
        with accelerator.autocast():
            loss, numbers = loss_at(model, step)
        if loss.requires_grad:  # a DRaFT step has left its gradients already
            accelerator.backward(loss)
        elif all(p.grad is None for p in trainable):
            raise ValueError(f"{label}: the loss of step {step} has no gradient; is it computed inside torch.no_grad()?")
        record = {"loss": loss, "grad_norm": accelerator.clip_grad_norm_(trainable, clip)} | numbers
        return {"step": step} | {k: torch.as_tensor(v).item() for k, v in record.items()}

    history = _resume(checkpoint, recipe, accelerator.unwrap_model(model), optimizer, gradient)
    bar = tqdm(range(len(history), steps), desc=label, initial=len(history), total=steps, mininterval=5)
    for step in bar:
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, steps=steps, peak=lr, warmup=warmup, schedule=schedule)
        history.append(gradient(step))
        if not math.isfinite(history[-1]["loss"]):
            what = f"{label}: the loss is {history[-1]['loss']} at step {step}; lower the learning rate {lr}"
            raise FloatingPointError(what + (f", or look at this batch, prompt_id {batch(step)}" if batch else ""))
        optimizer.step()
        optimizer.zero_grad()
        bar.set_postfix(loss=f"{history[-1]['loss']:.4g}", refresh=False)
        if checkpoint and accelerator.is_main_process and ((step + 1) % save_every == 0 or step + 1 == steps):
            _save(checkpoint, recipe, accelerator.unwrap_model(model), optimizer, history)
    model.eval()
    return history


def _save(path, recipe: dict, model: nn.Module, optimizer, history: list[dict]) -> None:
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    weights = {name: t for name, t in model.state_dict().items() if name not in frozen}
    state = {"recipe": recipe, "model": weights, "optimizer": optimizer.state_dict(), "history": history}
    atomic(path, lambda partial: torch.save(state, partial))


def _resume(path, recipe: dict, model: nn.Module, optimizer, gradient) -> list[dict]:
    if path is None or not Path(path).exists():
        return []
    state = torch.load(path, map_location="cpu", weights_only=True)
    if state["recipe"] != recipe:
        raise ValueError(f"{path} was written with {state['recipe']}, not {recipe}; delete it to start again")
    was, now = state["history"][0], gradient(0)
    optimizer.zero_grad()
    for name, tolerance in (("loss", 1e-3), ("grad_norm", 1e-2)):
        if not math.isclose(was[name], now[name], rel_tol=tolerance, abs_tol=1e-7):
            begun = f"{path} began with {name} {was[name]:.6g}, this run with {now[name]:.6g}"
            raise ValueError(f"{begun}: its data, model or loss is another; delete it to start again")
    model.load_state_dict(model.state_dict() | state["model"])
    optimizer.load_state_dict(state["optimizer"])
    return state["history"]
