"""One training loop for every model of the project: the data of a step depends on its number alone, so a killed run
that starts again goes on to the same numbers."""

import contextlib
import math
from collections.abc import Callable
from dataclasses import asdict, dataclass

import torch
from accelerate import Accelerator, PartialState
from accelerate.utils import GradientAccumulationPlugin
from diffusers.training_utils import EMAModel
from torch import Tensor, nn
from tqdm.auto import tqdm

from icthp import optimizers
from icthp.checkpointing import Checkpoint
from icthp.isolation import isolated
from icthp.precision import DTYPES, own_forward


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
    rows = []
    start = step * size
    while len(rows) < size:
        epoch, offset = divmod(start + len(rows), n)
        order = torch.randperm(n, generator=torch.Generator().manual_seed(seed * 1_000_003 + epoch)).tolist()
        rows += order[offset : offset + size - len(rows)]
    return torch.tensor(rows)


@dataclass(frozen=True, kw_only=True)
class Hyperparameters:
    """What decides the numbers of a run, beside its model and its data."""

    steps: int
    lr: float  # at its peak
    muon: str = ""  # Muon moves the matrices whose names contain this text, AdamW all else; "" for AdamW alone
    warmup: int = 0  # steps
    schedule: str = "cosine"  # `learning_rate`'s
    weight_decay: float = 0.01
    betas: tuple[float, float] = (0.9, 0.98)
    clip: float = 1.0  # largest norm of a gradient
    accumulate: int = 1  # batches a step
    ema: float = 0.0  # decay of an average of the weights, which the model holds in the end; 0 for none
    seed: int = 0
    precision: str = "no"  # or "bf16", for autocast
    patience: int = 0  # stop after so many validations without improvement; 0 for never

    def __post_init__(self):
        if self.precision not in DTYPES:
            raise ValueError(f"precision must be one of {', '.join(DTYPES)}, not {self.precision!r}")
        for name in ("lr", "weight_decay", "clip", "ema"):
            object.__setattr__(self, name, float(getattr(self, name)))  # numpy's would end in the optimiser, which a checkpoint cannot hold
        object.__setattr__(self, "betas", tuple(map(float, self.betas)))

    def lr_at(self, step: int) -> float:
        return learning_rate(step, steps=self.steps, peak=self.lr, warmup=self.warmup, schedule=self.schedule)


@isolated()
def train(
    model: nn.Module,
    loss_fn: Callable[[nn.Module, int], tuple[Tensor, dict]],
    *,
    checkpoint=None,
    save_every: int = 100,
    validate: Callable[[nn.Module, int], float | dict] | None = None,
    validate_every: int = 100,
    restore_best: bool = False,
    config: dict | None = None,
    label: str = "train",
    prompt_ids: Callable[[int], list] | None = None,
    **hyperparameters,
) -> list[dict]:
    """Train the parameters of `model` that require a gradient; returns one record of numbers a step.

    loss_fn(model, i) -> (scalar loss, dict of numbers to record) for batch i; a step takes `accumulate` batches. Random draws inside
    it (dropout too) are seeded by (seed, i); the caller's random state is restored in the end. The model trains on its own device; under
    `accelerate launch` on every process, and gradients are the mean over processes. hyperparameters: see `Hyperparameters`.

    checkpoint: a path; the run saves every `save_every` steps. Started again it repeats step 0, finds the same loss and gradient norm, and
    resumes. ValueError refuses a checkpoint of other data, another model or another loss; also one of other hyperparameters, other first
    weights or another `config`, plain values that the caller adds: the message says what differs.
    validate(model, step) -> a loss, or a dict of numbers with one called "val_loss", every `validate_every` steps and at the end, with the
    model as it is used, outside of autocast. The record holds them; the weights of the lowest val_loss lie beside the checkpoint,
    NAME.best.pt; restore_best: the model ends with those.
    FloatingPointError stops a run at a loss or gradient that is not finite, before the weights change; with prompt_ids(i) -> list it names
    the prompts of that batch.
    """
    if restore_best and not (checkpoint and validate):
        raise ValueError("restore_best needs a checkpoint and a validation")
    options = Hyperparameters(**hyperparameters)
    run = _Run(model, loss_fn, options, label)
    config = {f"config.{name}": value for name, value in (config or {}).items()} | asdict(options)
    saved = Checkpoint(checkpoint, model, run.optimizer, run.average, config)
    try:
        history = saved.resume(run.gradient)
        if restore_best and _val_losses(history):
            saved.read_best()  # before hours of training, not after
        bar = run.progress_bar(done=len(history))
        for step in bar:
            if _should_stop(history, options.patience):
                break
            history.append(run.gradient(step))
            _raise_unless_finite(history[-1], options, label, prompt_ids)
            run.update(step)
            bar.set_postfix(loss=f"{history[-1]['loss']:.4g}", refresh=False)
            if validate and _due(step, options.steps, validate_every):
                with run.averaged(), own_forward(model):
                    history[-1] |= _validate(validate, model, step)
                    if run.is_main and _is_best(history):
                        saved.save_best()
            if checkpoint and run.is_main and (_due(step, options.steps, save_every) or _should_stop(history, options.patience)):
                saved.save(history)
        run.finish()
        if restore_best:
            saved.restore_best()
            run.accelerator.wait_for_everyone()  # nobody removes the file before all have read it
    finally:
        run.release()
    model.eval()
    return history


# ---- one run ----------------------------------------------------------------------------------------------------


class _Run:
    """The model of a run with all that moves its weights: accelerator, AdamW and the average of the weights."""

    def __init__(self, model: nn.Module, loss_fn, options: Hyperparameters, label: str):
        self.loss_fn = loss_fn
        self.options = options
        self.label = label
        self.accelerator = _accelerator(model, options.precision)
        self.is_main = self.accelerator.is_main_process
        self.parameters = [p for p in model.parameters() if p.requires_grad]
        self.average = EMAModel(self.parameters, decay=options.ema) if options.ema else None
        optimizer = optimizers.build(model, lr=options.lr, betas=options.betas, weight_decay=options.weight_decay, muon=options.muon)
        self.model, self.optimizer = self.accelerator.prepare(model, optimizer)
        _training_mode(self.model)
        self.optimizer.zero_grad()  # a gradient that the caller left is none of this run's

    def gradient(self, step: int) -> dict:
        """The clipped gradient of a step, in the parameters; returns the step's record."""
        first = step * self.options.accumulate
        last = first + self.options.accumulate - 1
        records = [self._backward(i, is_last=i == last) for i in range(first, last + 1)]
        if all(p.grad is None for p in self.parameters):
            raise ValueError(f"{self.label}: the loss of step {step} has no gradient; is it computed inside torch.no_grad()?")
        norm = self.accelerator.clip_grad_norm_(self.parameters, self.options.clip)
        return {"step": step} | self._mean(records) | {"grad_norm": float(norm)}

    def _backward(self, i: int, is_last: bool) -> dict:
        """Loss and gradient of batch i; only those of a step's last batch are exchanged between processes."""
        accelerator = self.accelerator
        accumulate = self.options.accumulate
        torch.manual_seed((self.options.seed + 7919 * accelerator.process_index) * 1_000_003 + i)
        with contextlib.nullcontext() if is_last else accelerator.no_sync(self.model):
            with accelerator.autocast():
                loss, numbers = self.loss_fn(self.model, i)
            torch.clear_autocast_cache()  # inside the caller's autocast it would keep these weights for the next step
            if loss.requires_grad:
                accelerator.backward(loss / accumulate)
            elif is_last:  # a tuning step has left its own gradients
                for p in self.model.parameters():
                    p.grad = None if p.grad is None else accelerator.reduce(p.grad / accumulate, "mean")
        return {"loss": loss} | numbers

    def _mean(self, records: list[dict]) -> dict:
        """Over a step's batches and the processes."""
        rows = [[torch.as_tensor(value).item() for value in record.values()] for record in records]
        mean = torch.tensor(rows, dtype=torch.float64).mean(0)
        if self.accelerator.num_processes > 1:
            mean = self.accelerator.reduce(mean.to(self.accelerator.device), "mean")
        return dict(zip(records[0], mean.tolist()))

    def update(self, step: int) -> None:
        for group in self.optimizer.param_groups:
            group["lr"] = self.options.lr_at(step)
        self.optimizer.step()
        self.optimizer.zero_grad()
        if self.average:
            self.average.step(self.parameters)

    @contextlib.contextmanager
    def averaged(self):
        """Inside, the parameters are their average, if there is one."""
        if self.average:
            self.average.store(self.parameters)
            self.average.copy_to(self.parameters)
        try:
            yield
        finally:
            if self.average:
                self.average.restore(self.parameters)

    def progress_bar(self, done: int) -> tqdm:
        """Over the steps that remain."""
        steps = self.options.steps
        return tqdm(range(done, steps), desc=self.label, initial=done, total=steps, mininterval=5, disable=not self.is_main)

    def finish(self) -> None:
        if self.average:
            self.average.copy_to(self.parameters)
        self.accelerator.wait_for_everyone()

    def release(self) -> None:
        """The model's forward is again the one that came, after an error too."""
        self.accelerator.unwrap_model(self.model, keep_fp32_wrapper=False)
        self.optimizer.zero_grad()


def _accelerator(model: nn.Module, precision: str) -> Accelerator:
    """On the model's own device, where one process is alone."""
    cpu = next(model.parameters()).device.type == "cpu"
    alone = PartialState(cpu=cpu).num_processes == 1
    plugin = GradientAccumulationPlugin(num_steps=1)
    return Accelerator(mixed_precision=precision, cpu=cpu, device_placement=not alone, gradient_accumulation_plugin=plugin)


def _training_mode(model: nn.Module) -> None:
    """But for the statistics of frozen batch norms, which would go on moving."""
    model.train()
    for part in model.modules():
        if isinstance(part, nn.modules.batchnorm._BatchNorm) and not any(p.requires_grad for p in part.parameters()):
            part.eval()


# ---- what a step's record says ----------------------------------------------------------------------------------


def _due(step: int, steps: int, every: int) -> bool:
    return step + 1 == steps or (step + 1) % every == 0


def _raise_unless_finite(record: dict, options: Hyperparameters, label: str, prompt_ids) -> None:
    for name in ("loss", "grad_norm"):
        if not math.isfinite(record[name]):
            message = f"{label}: the {name} is {record[name]} at step {record['step']}; lower the learning rate {options.lr}"
            if prompt_ids:
                first = record["step"] * options.accumulate
                ids = [each for i in range(first, first + options.accumulate) for each in prompt_ids(i)]
                message += f", or look at this batch, prompt_id {ids}"
            raise FloatingPointError(message)


def _validate(validate, model: nn.Module, step: int) -> dict[str, float]:
    model.eval()
    with torch.no_grad():
        measured = validate(model, step)
    _training_mode(model)
    numbers = measured if isinstance(measured, dict) else {"val_loss": measured}
    numbers = {name: float(value) for name, value in numbers.items()}
    if not math.isfinite(numbers["val_loss"]):
        raise FloatingPointError(f"the validation loss is {numbers['val_loss']} at step {step}")
    return numbers


def _val_losses(history: list[dict]) -> list[float]:
    return [record["val_loss"] for record in history if "val_loss" in record]


def _is_best(history: list[dict]) -> bool:
    losses = _val_losses(history)
    return losses[-1] <= min(losses)


def _should_stop(history: list[dict], patience: int) -> bool:
    losses = _val_losses(history)
    return 0 < patience < len(losses) and min(losses[-patience:]) >= min(losses[:-patience])
