"""A tuning as a training run: prompts in batches, a noise for every picture, a checkpoint that knows its prompts and its reward."""

import inspect
from collections.abc import Callable

import torch
from accelerate import PartialState
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from icthp import files
from icthp.images import jpeg_bytes
from icthp.trainer import batch_indices, train
from icthp.tuning import identity
from icthp.tuning.encoding import EncodedPrompts, as_texts, encoded
from icthp.tuning.lora import has_adapter, train_adapter, unwrap
from icthp.tuning.rewards import RewardStep


def tune(
    pipe: StableDiffusion3Pipeline,
    prompts: list[str],
    reward: Callable[[Tensor, list[str]], Tensor],
    update: Callable[..., RewardStep],
    *,
    batch: int,
    seed: int = 0,
    inputs: dict[str, Callable[[list[str]], object]] | None = None,
    config: dict | None = None,
    **options,
) -> list[dict]:
    """Train the LoRA that `add_lora` made; returns trainer.train's records, with the mean reward, pictures left out, JPEG size.

    reward(pixels (m, 3, h, w) in [0, 1], m prompts) -> (m,), higher is better: a scorer's `score`, say. update: `draft_step`, `fit_step` or
    another of its kind with its options, as in partial(draft_step, steps=28, k=1); inputs: what it takes beside, {name: function of the
    batch's prompts}, as `encode` of other captions. batch: prompts a step over all processes, of which each takes its
    part; the noise of a picture depends on seed, step and its place in the batch alone (where rewards are not finite, each process takes
    the mean over its own). options: trainer.train's (steps, lr, checkpoint, ...). A LoRA that is active beside it stays frozen.
    Raises ValueError for a batch that the processes cannot share, for a LoRA of add_lora that is not active, and for a checkpoint of
    other prompts or of an `update` with other options.
    """
    state = PartialState(cpu=pipe.device.type == "cpu")
    if batch % state.num_processes:
        raise ValueError(f"batch must be a multiple of the {state.num_processes} processes, not {batch}")
    transformer = unwrap(pipe.transformer)
    prompts = as_texts(prompts)
    if has_adapter(transformer):
        train_adapter(transformer)
    shard = slice(state.process_index, None, state.num_processes)
    conditions = encoded(pipe) or EncodedPrompts(pipe, prompts)

    def loss_fn(_, step: int) -> tuple[Tensor, dict]:
        rows = batch_indices(step, n=len(prompts), size=batch, seed=seed)[shard]
        noise = [torch.Generator().manual_seed((seed * 1_000_003 + step) * 1009 + place) for place in range(batch)[shard]]

        def batch_reward(pixels: Tensor, places: Tensor) -> Tensor:
            return reward(pixels, [prompts[rows[i]] for i in places.tolist()])

        texts = [prompts[row] for row in rows]
        prompt_embeds, pooled = conditions.of(texts, transformer.device)
        given = {name: of(texts) for name, of in (inputs or {}).items()}
        rewards, pixels, valid = update(pipe, prompt_embeds, pooled, batch_reward, generator=noise, **given)
        mean = rewards[valid].mean()
        return -mean, {"reward": mean, "dropped": (~valid).sum(), "jpeg_kb": jpeg_bytes(pixels[valid]).mean() / 1000}

    config = (config or {}) | {
        "batch": batch,
        "prompts": files.digest(prompts),
        "update": identity.identity_of(update),
        "reward": _identity_of_callable(reward),
    }
    if inputs:
        config |= {"inputs": {name: _identity_of_callable(of) for name, of in inputs.items()}}
    return train(transformer, loss_fn, seed=seed, config=config, **options)


def _identity_of_callable(function) -> object:
    """A scorer's weights, or a function's code without the values that it closes over, which may change while it runs."""
    owner = getattr(function, "__self__", function)
    if isinstance(owner, torch.nn.Module):
        return identity.identity_of(owner)
    return identity.identity_of_code(function) if inspect.isfunction(function) else identity.identity_of(function)
