"""One training loop for every model of the project: the data of a step depends on its number alone, so a killed run
that starts again goes on to the same numbers."""

import contextlib
import math
import os
from collections.abc import Callable
from pathlib import Path

import torch
import torch.distributed as dist
from accelerate import Accelerator, PartialState
from accelerate.state import AcceleratorState, GradientState
from accelerate.utils import GradientAccumulationPlugin
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from icthp.files import atomic, fingerprint


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


@contextlib.contextmanager
def isolated():
    """Also a decorator. Inside, torch's random numbers, its autocast and accelerate's settings are this block's own; outside, the caller's
    go on as if nothing had been drawn or set, however the block ends. Only a process group that the launch asks for remains."""
    states = [AcceleratorState, GradientState]
    if not dist.is_initialized() and int(os.environ.get("WORLD_SIZE", 1)) == 1:
        states.append(PartialState)  # holds the device, which a fit on the CPU would set for all that follow
    before = [state._shared_state for state in states]
    cuda = torch.cuda.is_initialized()
    for state in states:
        state._shared_state = type(state._shared_state)()  # the caller's Accelerator keeps the dictionary that it has
    try:
        with torch.random.fork_rng(range(torch.cuda.device_count()) if cuda else []), contextlib.ExitStack() as outside:
            for kind in ("cpu", "cuda"):
                if torch.is_autocast_enabled(kind):
                    outside.enter_context(torch.autocast(kind, enabled=False))
            yield
    finally:
        if not cuda:
            torch.cuda.manual_seed_all(torch.initial_seed())  # which waits until CUDA starts, as the caller's own seed did
        for state, own in zip(states, before):
            state._shared_state = own


@isolated()
def train(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, int], tuple[Tensor, dict]],
    *,
    steps: int,
    lr: float,
    warmup: int = 0,
    schedule: str = "cosine",
    weight_decay: float = 0.01,
    betas: tuple[float, float] = (0.9, 0.98),
    clip: float = 1.0,
    accumulate: int = 1,
    ema: float = 0.0,
    seed: int = 0,
    precision: str = "no",
    checkpoint=None,
    save_every: int = 100,
    validate: Callable[[nn.Module, int], float | dict] | None = None,
    validate_every: int = 100,
    keep: str = "last",
    patience: int = 0,
    recipe: dict | None = None,
    label: str = "train",
    batch: Callable[[int], list] | None = None,
) -> list[dict]:
    """Train the parameters of `model` that require a gradient with AdamW; returns one record of numbers a step.

    loss_fn(model, i) -> (scalar loss, dict of numbers to record) for batch i; a step takes `accumulate` batches. Random draws inside
    it (dropout too) are seeded by (seed, i), and the caller's go on afterwards where they were. It runs where the model lies, on every
    process of an `accelerate launch`, where gradients are the mean over processes. `ema`: decay of an average of the weights, which the
    model holds in the end; 0 for none.
    With `checkpoint` (a path) the run saves every `save_every` steps and resumes from it, after it has repeated step 0 and found
    the same loss and gradient norm: a checkpoint of other data, another model or another loss is refused with ValueError; so is
    one whose `recipe`, plain values that the caller adds to fit's own and to the digest of the model's first weights, is another: the
    message says what differs.
    validate(model, step) -> a loss, or a dict of numbers with one called "val_loss", every `validate_every` steps and at the end; the
    record has it, and the weights of the lowest lie beside the checkpoint, NAME.best.pt; keep="best" ends with those. patience:
    stop when so many validations on end have brought no lower one; 0 for never. `precision`: "no", or "bf16" for autocast. A loss
    or gradient that is not finite stops the run with FloatingPointError before the weights change; it names the prompt ids batch(i), if
    given.
    """
    if precision not in DTYPES:
        raise ValueError(f"precision must be one of {', '.join(DTYPES)}, not {precision!r}")
    if keep not in ("last", "best") or keep == "best" and not (checkpoint and validate):
        raise ValueError(f'keep must be "last", or "best" with a checkpoint and a validation, not {keep!r}')
    lr, weight_decay, betas, clip, ema = float(lr), float(weight_decay), tuple(map(float, betas)), float(clip), float(ema)  # not numpy's
    cpu = next(model.parameters()).device.type == "cpu"
    alone = PartialState(cpu=cpu).num_processes == 1
    accelerator = Accelerator(mixed_precision=precision, cpu=cpu, device_placement=not alone,  # alone, the model stays where it lies
                              gradient_accumulation_plugin=GradientAccumulationPlugin(num_steps=1))  # fmt: skip
    trainable = [p for p in model.parameters() if p.requires_grad]
    plain, average = model, EMAModel(trainable, decay=ema) if ema else None
    model, optimizer = accelerator.prepare(model, torch.optim.AdamW(trainable, lr=lr, betas=betas, weight_decay=weight_decay))
    recipe = {f"recipe.{name}": value for name, value in (recipe or {}).items()} | {
        "steps": steps, "lr": lr, "warmup": warmup, "schedule": schedule, "weight_decay": weight_decay, "betas": list(betas), "clip": clip,
        "accumulate": accumulate, "ema": ema, "seed": seed, "precision": precision, "patience": patience,
        "model": fingerprint(plain) if checkpoint else ""}  # fmt: skip
    recipe = {name: value.item() if hasattr(value, "item") else value for name, value in recipe.items()}
    best = Path(checkpoint).with_name(Path(checkpoint).name.removesuffix(".pt") + ".best.pt") if checkpoint else None
    _training(model)
    optimizer.zero_grad()  # a gradient that the caller left is none of this run's

    def gradient(step: int) -> dict:
        parts = [_backward(accelerator, model, loss_fn, step * accumulate + j, j, accumulate, seed) for j in range(accumulate)]
        if all(p.grad is None for p in trainable):
            raise ValueError(f"{label}: the loss of step {step} has no gradient; is it computed inside torch.no_grad()?")
        norm = accelerator.clip_grad_norm_(trainable, clip)
        return {"step": step} | _mean(accelerator, parts) | {"grad_norm": float(norm)}

    try:
        history = _resume(checkpoint, recipe, plain, optimizer, average, gradient)
        if keep == "best" and any("val_loss" in record for record in history):
            _read(best, checkpoint)  # before hours of training, not after
        bar = tqdm(range(len(history), steps), desc=label, initial=len(history), total=steps, mininterval=5,
                   disable=not accelerator.is_main_process)  # fmt: skip
        for step in bar:
            if _should_stop(history, patience):
                break
            for group in optimizer.param_groups:
                group["lr"] = learning_rate(step, steps=steps, peak=lr, warmup=warmup, schedule=schedule)
            history.append(gradient(step))
            wrong = [name for name in ("loss", "grad_norm") if not math.isfinite(history[-1][name])]
            if wrong:
                what = f"{label}: the {wrong[0]} is {history[-1][wrong[0]]} at step {step}; lower the learning rate {lr}"
                ids = [i for j in range(accumulate) for i in batch(step * accumulate + j)] if batch else []
                raise FloatingPointError(what + (f", or look at this batch, prompt_id {ids}" if batch else ""))
            optimizer.step()
            optimizer.zero_grad()
            if average:
                average.step(trainable)
            if validate and _due(step, steps, validate_every):
                with _averaged(average, trainable):
                    _validate(validate, plain, history, best if accelerator.is_main_process else None)
            bar.set_postfix(loss=f"{history[-1]['loss']:.4g}", refresh=False)
            if checkpoint and accelerator.is_main_process and (_due(step, steps, save_every) or _should_stop(history, patience)):
                _save(checkpoint, recipe, plain, optimizer, average, history)
        if average:
            average.copy_to(trainable)
        accelerator.wait_for_everyone()
        if keep == "best":
            plain.load_state_dict(plain.state_dict() | _read(best, checkpoint))
            accelerator.wait_for_everyone()  # nobody removes the file before all have read it
    finally:
        accelerator.unwrap_model(model, keep_fp32_wrapper=False)  # its forward is again the one that came, after an error too
        optimizer.zero_grad()
    plain.eval()
    return history


def _training(model: nn.Module) -> None:
    """Training mode, but for the statistics of frozen batch norms, which would go on moving."""
    model.train()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not any(p.requires_grad for p in part.parameters()):
            part.eval()


def _due(step: int, steps: int, every: int) -> bool:
    return step + 1 == steps or (step + 1) % every == 0


def _backward(accelerator: Accelerator, model, loss_fn, i: int, j: int, accumulate: int, seed: int) -> dict:
    """Loss and gradient of batch i, the j-th of a step's; only the last one's are exchanged between processes."""
    torch.manual_seed((seed + 7919 * accelerator.process_index) * 1_000_003 + i)
    with contextlib.nullcontext() if j == accumulate - 1 else accelerator.no_sync(model):
        with accelerator.autocast():
            loss, numbers = loss_fn(model, i)
        torch.clear_autocast_cache()  # inside the caller's autocast it would keep these weights for the next step
        if loss.requires_grad:
            accelerator.backward(loss / accumulate)
        elif j == accumulate - 1:  # a DRaFT step has left its own gradients
            for p in model.parameters():
                p.grad = None if p.grad is None else accelerator.reduce(p.grad / accumulate, "mean")
    return {"loss": loss} | numbers


def _mean(accelerator: Accelerator, parts: list[dict]) -> dict:
    """Over a step's batches and the processes."""
    mean = torch.tensor([[torch.as_tensor(v).item() for v in part.values()] for part in parts], dtype=torch.float64).mean(0)
    mean = accelerator.reduce(mean.to(accelerator.device), "mean") if accelerator.num_processes > 1 else mean
    return dict(zip(parts[0], mean.tolist()))


@contextlib.contextmanager
def _averaged(average: EMAModel | None, trainable: list[nn.Parameter]):
    """Inside, the parameters are their average, if there is one."""
    if average:
        average.store(trainable)
        average.copy_to(trainable)
    try:
        yield
    finally:
        if average:
            average.restore(trainable)


def _validate(validate, model: nn.Module, history: list[dict], best: Path | None) -> None:
    """The last record gets its val_loss; the weights of the lowest so far go to the file `best`."""
    model.eval()
    with torch.no_grad():
        said = validate(model, history[-1]["step"])
    history[-1] |= {k: float(v) for k, v in (said if isinstance(said, dict) else {"val_loss": said}).items()}
    _training(model)
    if not math.isfinite(history[-1]["val_loss"]):
        raise FloatingPointError(f"the validation loss is {history[-1]['val_loss']} at step {history[-1]['step']}")
    if best and history[-1]["val_loss"] <= min(record["val_loss"] for record in history if "val_loss" in record):
        atomic(best, lambda partial: torch.save(_trained(model), partial))


def _should_stop(history: list[dict], patience: int) -> bool:
    losses = [record["val_loss"] for record in history if "val_loss" in record]
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])


def _trained(model: nn.Module) -> dict[str, Tensor]:
    """The state without what is frozen."""
    frozen = {name for name, p in model.named_parameters() if not p.requires_grad}
    return {name: t for name, t in model.state_dict().items() if name not in frozen}


def _save(path, recipe: dict, model: nn.Module, optimizer, average: EMAModel | None, history: list[dict]) -> None:
    state = {"recipe": recipe, "model": _trained(model), "optimizer": optimizer.state_dict(), "history": history}
    state |= {"ema": average.state_dict()} if average else {}
    atomic(path, lambda partial: torch.save(state, partial))


def _read(path, checkpoint, keys=frozenset()) -> dict:
    """What torch.save wrote, on the CPU. ValueError for a file that is missing, damaged, or without these keys."""
    try:
        state = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file may raise anything
        why = str(error).partition("\n")[0][:200] or type(error).__name__
        raise ValueError(f"{path} is missing, cut or damaged: delete {checkpoint} to start again ({why})") from error
    if not isinstance(state, dict) or keys - state.keys():
        raise ValueError(f"{path} is no checkpoint of this loop: delete it to start again")
    return state


def _differences(was: dict, now: dict) -> str:
    """ "lr: was 0.1, is 0.2; ...", or "" for equal recipes."""
    values = ((name, was.get(name, "absent"), now.get(name, "absent")) for name in {**was, **now})
    return "; ".join(f"{name}: was {old!r}, is {new!r}" for name, old, new in values if old != new)


def _resume(path, recipe: dict, model: nn.Module, optimizer, average: EMAModel | None, gradient) -> list[dict]:
    if path is None or not Path(path).exists():
        return []
    state = _read(path, path, {"recipe", "model", "optimizer", "history"})
    if other := _differences(state["recipe"], recipe):
        raise ValueError(f"{path} is another run's: {other}; delete it to start again")
    was, now = state["history"][0], gradient(0)
    optimizer.zero_grad()
    for name, tolerance in (("loss", 1e-3), ("grad_norm", 1e-2)):
        if not math.isclose(was[name], now[name], rel_tol=tolerance, abs_tol=1e-7):
            begun = f"{path} began with {name} {was[name]:.6g}, this run with {now[name]:.6g}"
            raise ValueError(f"{begun}: its data, model or loss is another; delete it to start again")
    model.load_state_dict(model.state_dict() | state["model"])
    optimizer.load_state_dict(state["optimizer"])
    if average:
        average.load_state_dict(state["ema"])
        average.to(next(model.parameters()).device)
    return state["history"]


DTYPES = {"no": torch.float32, "bf16": torch.bfloat16}  # accelerate's names of precision
