"""DRaFT-K and DRaFT-LV (Clark et al., arXiv 2309.17400) on a flow-matching diffusers pipeline.

Sample from noise without a graph, keep the graph of the last k steps, decode, score, and send the reward's gradient back
into the LoRA parameters. Decoder and reward hold their graph for one micro-batch at a time: their gradient with respect
to the latents is all that the transformer's backward pass needs.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import NamedTuple

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from diffusers import AutoPipelineForImage2Image, DiffusionPipeline, StableDiffusion3Pipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from icthp import files, hub, identity
from icthp.loop import batch_indices, fit
from icthp.lora import LORA_TARGETS, add_lora, has_ours, load_lora, merged, plain, save_lora, train_ours, without_lora  # noqa: F401, for callers
from icthp.pictures import encode as encode_pictures
from icthp.pictures import jpeg_bytes


class RewardStep(NamedTuple):
    rewards: Tensor  # (b,) or (lv * b,), detached
    pixels: Tensor  # the same pictures, (.., 3, h, w) in [0, 1], detached
    kept: Tensor  # (b,) or (lv * b,) bool: has it a finite reward and gradient? the others were left out


def encode(pipe: StableDiffusion3Pipeline, prompts: list[str], batch: int = 256) -> tuple[Tensor, Tensor]:
    """Prompt embeddings (b, n, d) and pooled (b, p), without a graph. ValueError for no prompt, or one that is no list."""
    length, parts = hub.t5_length(pipe), []
    if not len(prompts := _texts(prompts)):
        raise ValueError("there is no prompt to encode")
    for i in range(0, len(prompts), batch):
        some = prompts[i : i + batch]
        with torch.no_grad():
            embeds, _, pooled, _ = pipe.encode_prompt(some, some, some, do_classifier_free_guidance=False, max_sequence_length=length)
        parts.append((embeds, pooled))
    embeds, pooled = (torch.cat(part) for part in zip(*parts))
    return embeds, pooled


def _texts(prompts) -> list[str]:
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of texts, not one text: [{prompts!r}]")
    return list(prompts)


def _denoiser(pipe: DiffusionPipeline) -> torch.nn.Module:
    return pipe.unet if getattr(pipe, "transformer", None) is None else pipe.transformer


def _sides(pipe: DiffusionPipeline, size) -> tuple[int, int]:
    """Height and width in pixels of one side, of two, or of None, the denoiser's own."""
    size = _denoiser(pipe).config.sample_size * pipe.vae_scale_factor if size is None else size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return height, width


@torch.no_grad()
def generate(
    pipe: DiffusionPipeline, prompts: list[str], *, steps: int, seed: int = 0, ids=None, batch: int = 64, size=None,
    guidance: float = 0.0, start: Tensor | None = None, strength: float = 1.0, base_steps: int = 0
) -> Tensor:  # fmt: skip
    """Pixels (n, 3, h, w) in [0, 1] on the CPU by the pipeline's own sampler; guidance off unless above 1. size: pixels, one
    side or (height, width), the pipeline's own unless given. Row i has noise of its own seed, seed + ids[i] (ids: the row
    numbers unless given), so it looks the same whatever the batch. start (n, 3, h, w) in [0, 1]: edit these pictures instead,
    by diffusers' image-to-image form of the pipeline (SDEdit, arXiv 2108.01073), which noises them to `strength` and takes
    that share of the steps, rounded up. base_steps: the LoRA (see `without_lora`) enters after so many steps, so that the
    untuned transformer lays the picture out. ValueError for more of them than there are, for one text in place of a list, and
    for ids or start pictures that are not one a prompt."""
    prompts = _texts(prompts)
    if any(given is not None and len(given) != len(prompts) for given in (ids, start)):
        raise ValueError(f"{len(prompts)} prompts need as many ids and start pictures, where those are given")
    if start is not None and not start.is_floating_point():
        raise ValueError(f"start pictures must be floats in [0, 1], not {start.dtype}")
    taken = steps if start is None else steps - int(max(steps - steps * strength, 0))
    if not 0 <= base_steps <= taken:
        raise ValueError(f"base_steps must lie in 0..{taken}, the steps taken, not {base_steps}")
    ids = range(len(prompts)) if ids is None else ids
    height, width = start.shape[2:] if start is not None else (None, None) if size is None else _sides(pipe, size)
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt", "height": height, "width": width}
    if isinstance(pipe, StableDiffusion3Pipeline):
        options["max_sequence_length"] = hub.t5_length(pipe)
    draw = pipe if start is None else AutoPipelineForImage2Image.from_pipe(pipe)
    draw.set_progress_bar_config(disable=True)
    known = inspect.signature(draw.__call__).parameters  # some take an edit's size from the picture alone
    options = {name: value for name, value in options.items() if name in known}
    out = [] if prompts else [torch.zeros(0, 3, *(_sides(pipe, size) if start is None else start.shape[2:]))]
    for i in range(0, len(prompts), batch):
        part = slice(i, i + batch)
        edit = {} if start is None else {"image": start[part], "strength": strength}
        noise = [torch.Generator().manual_seed(seed + int(k)) for k in ids[part]]
        with contextlib.ExitStack() as untuned:
            if base_steps:
                untuned.enter_context(without_lora(_denoiser(pipe)))
                edit["callback_on_step_end"] = lambda p, i, t, kept, end=untuned.close: (end() if i + 1 == base_steps else None) or kept
            out.append(draw(prompts[part], generator=noise, **options, **edit).images.float().cpu())
    return torch.cat(out)


def generate_shards(
    pipe: DiffusionPipeline, prompts: list[str], ids: list[int], folder, *, shard: int = 256,
    start: Callable[[slice], Tensor] | None = None, **options
) -> Iterator[dict]:  # fmt: skip
    """Pictures of prompts as PNG contents for an Image() column, by generate(pipe, prompts, ids=ids, **options), read one by
    one from the files that hold them; start(rows) -> the pictures to edit, if any.

    Every `shard` rows become one file under `folder`, written whole or not at all; a later call with the same prompts, ids,
    pictures, options and all else that the pictures depend on (`identity.of_pipeline`) reads it instead, unless it was cut
    short. Under `accelerate launch` or `torchrun` each process draws every n-th shard and all return the whole; shards are
    cut alike whatever the number of processes, and so are the pictures."""
    process, shards, prompts = PartialState(cpu=pipe.device.type == "cpu"), [], _texts(prompts)
    if len(ids) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many ids, not {len(ids)}")
    own = identity.of_pipeline(pipe)
    for k, first in enumerate(range(0, len(prompts), shard)):
        part = slice(first, first + shard)
        texts, numbers, pictures = prompts[part], list(map(int, ids[part])), start(part) if start else None
        key = files.digest(own, identity.of_tokens(pipe, texts), texts, numbers, identity.of(options), identity.of(pictures))
        shards.append(Path(folder) / f"{k:05d}-{key}.parquet")
        if k % process.num_processes == process.process_index and not _is_whole(shards[-1], len(texts)):
            drawn = generate(pipe, texts, ids=numbers, start=pictures, **options)
            rows = datasets.Dataset.from_dict({"image": encode_pictures(drawn)}, features=datasets.Features({"image": datasets.Image()}))
            files.atomic(shards[-1], rows.to_parquet)
    process.wait_for_everyone()
    return (row["image"] for file in shards for rows in pq.ParquetFile(file).iter_batches(64) for row in rows.to_pylist())


def _is_whole(file: Path, rows: int) -> bool:
    """Is it there with so many rows? A parquet file that was cut has lost its end, where their number stands."""
    try:
        return pq.read_metadata(file).num_rows == rows
    except (OSError, pa.ArrowInvalid):
        return False


def latents(pipe: StableDiffusion3Pipeline, pixels: Tensor) -> Tensor:
    """Pixels (b, 3, h, w) in [0, 1] -> the autoencoder's mean latents in the transformer's units; `decode` goes back."""
    vae = pipe.vae
    mean = vae.encode((pixels * 2 - 1).to(vae.dtype)).latent_dist.mean.float()
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def decode(pipe: StableDiffusion3Pipeline, latents: Tensor) -> Tensor:
    """Latents -> pixels (b, 3, h, w) in [0, 1], differentiable."""
    vae = pipe.vae
    pixels = vae.decode((latents / vae.config.scaling_factor + vae.config.shift_factor).to(vae.dtype)).sample
    return (pixels.float() / 2 + 0.5).clamp(0, 1)


def draft_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    k: int = 1,
    lv: int = 1,
    generator: torch.Generator | list[torch.Generator],
    size: int | tuple[int, int] | None = None,
    guidance: float = 0.0,
    negative: tuple[Tensor, Tensor] | None = None,
    anchor: float = 0.0,
    decode_batch: int = 16,
    reforward: bool = False,
    merge: bool = False,
) -> RewardStep:
    """One DRaFT step: adds the gradient of -mean(reward) to the LoRA parameters'; the caller owns the optimiser.

    prompt_embeds (b, n, d), pooled (b, p): from `encode`. reward(pixels (m, 3, h, w), rows (m,) int64) -> (m,): rows says
    which prompts the pictures belong to; where it, its gradient at the picture or the sample itself is not finite, the picture is left
    out: rewards and gradients are those of the batch without it. steps: of the sampler, of which the last k keep their graph. lv > 1:
    DRaFT-LV, the finished sample is noised lv times to the last step's level and denoised once (k must be 1). generator: one, or one a
    prompt. size: pixels, one side or (height, width), default the transformer's. guidance above 1: classifier-free, away from
    `negative`, `encode` of one text. anchor: weight of the mean squared distance of the velocity from the untuned transformer's
    (`without_lora`), over the steps with a graph; with the sampler's noise that is their Kullback-Leibler divergence but for a factor of
    each level.

    Memory: decoder and reward see decode_batch pictures at a time. reforward: the last k steps run twice, the second time with
    their graph, so that it is never there together with the decoder's; so they do where a picture is left out. merge: see `merged`.
    Raises ValueError for k outside 1..steps, guidance without `negative`, or a size that the patches do not divide; FloatingPointError
    where no picture is left.
    """
    if not 1 <= k <= steps or (lv > 1 and k != 1):
        raise ValueError(f"k must lie in 1..{steps} (steps), and be 1 when lv > 1; got k={k}, lv={lv}")
    if guidance > 1 and negative is None:
        raise ValueError('guidance above 1 needs negative=draft.encode(pipe, [""])')
    transformer, sigmas = pipe.transformer, _sigmas(pipe, steps).tolist()
    told, last = (prompt_embeds, pooled), range(steps - k, steps)
    x, rows = _noise(pipe, len(pooled), size, generator), torch.arange(len(pooled), device=transformer.device)

    def velocity(x: Tensor, i: int, rows: Tensor) -> Tensor:
        v = _velocity(transformer, x, sigmas[i], [part[rows] for part in told])
        if guidance > 1:
            v0 = _velocity(transformer, x, sigmas[i], [part.expand(len(x), *part.shape[1:]) for part in negative])
            v = v0 + guidance * (v - v0)
        return v

    def denoise(x: Tensor, levels: range, rows: Tensor) -> tuple[Tensor, Tensor]:
        """The sample after those steps, and how far the tuned velocity went from the base's, where that is asked and has a graph."""
        away = torch.zeros((), device=x.device)
        for i in levels:
            v = velocity(x, i, rows)
            if anchor and torch.is_grad_enabled():
                with torch.no_grad(), without_lora(transformer):
                    base = velocity(x, i, rows)
                away = away + (v - base).square().mean()
            x = x + (sigmas[i + 1] - sigmas[i]) * v
        return x, away

    with torch.no_grad(), merged(transformer) if merge else contextlib.nullcontext():
        x, _ = denoise(x, range(steps if lv > 1 else steps - k), rows)
    if lv > 1:
        noise = torch.cat([_noise(pipe, len(pooled), size, generator) for _ in range(lv)])
        rows, x = rows.repeat(lv), (1 - sigmas[-2]) * x.repeat(lv, 1, 1, 1) + sigmas[-2] * noise
    with torch.set_grad_enabled(not reforward):
        end, away = denoise(x, last, rows)
    result, cotangent = _reward_gradient(pipe, end.detach(), rows, reward, decode_batch)
    kept = result.kept
    if reforward or not kept.all():  # zero times the gradient of a sample that is not finite would be NaN
        end = away = None  # with the graph, before the next one is made
        end, away = denoise(x[kept], last, rows[kept])
        cotangent = cotangent[kept]
    torch.autograd.backward([end, anchor * away] if anchor else [end], [cotangent, None] if anchor else [cotangent])
    return result


def dpo_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    generator: torch.Generator | list[torch.Generator],
    beta: float,
    size: int | tuple[int, int] | None = None,
    decode_batch: int = 16,
) -> RewardStep:
    """`draft_step`'s twin that asks the reward for an order only, never for a gradient: two pictures of each prompt by the tuned
    transformer, without guidance, of which the one with the higher reward is preferred; adds the gradient of `dpo_loss`. Pairs with a
    reward or a sample that is not finite are left out, equal ones have no gradient; FloatingPointError where no pair is left."""
    transformer, sigmas, b = pipe.transformer, _sigmas(pipe, steps).tolist(), len(pooled)
    told, rows = (prompt_embeds.repeat(2, 1, 1), pooled.repeat(2, 1)), torch.arange(b, device=transformer.device).repeat(2)
    x = torch.cat([_noise(pipe, b, size, generator) for _ in range(2)])
    with torch.no_grad():
        for i in range(steps):
            x = x + (sigmas[i + 1] - sigmas[i]) * _velocity(transformer, x, sigmas[i], told)
        parts = zip(x.split(decode_batch), rows.split(decode_batch))
        pixels, rewards = map(torch.cat, zip(*(_scored(pipe, *part, reward) for part in parts)))
    one, two = rewards.chunk(2)
    kept = (rewards.isfinite() & x.flatten(1).isfinite().all(1)).view(2, b).all(0)
    if not kept.any():
        raise FloatingPointError(f"no pair of this batch has finite samples and rewards; they are {rewards.tolist()}")
    order = (one >= two)[:, None, None, None]
    won, lost = (torch.where(choice, *x.chunk(2)) for choice in (order, ~order))
    rest = [p.where(kept.view(-1, *[1] * (p.ndim - 1)), 0) for p in (prompt_embeds, pooled, won, lost)]  # for 0 * NaN is NaN
    loss = dpo_loss(pipe, *rest, beta=beta, generator=generator, weights=(kept & (one != two)) / kept.sum())
    loss.backward()
    return RewardStep(rewards, pixels, kept.repeat(2))


def dpo_loss(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    won: Tensor,
    lost: Tensor,
    *,
    beta: float,
    generator: torch.Generator | list[torch.Generator],
    weights: Tensor | None = None,
) -> Tensor:
    """Diffusion-DPO (arXiv 2311.12908) for flow matching: the other way to tune on preferences, without a reward's gradient.

    won, lost (b, c, h, w): `latents` of the better and the worse picture of each prompt. -log sigmoid(-beta / 2 * (the winner's
    squared velocity error, less the untuned transformer's, less the same of the loser)), the mean over b, or with `weights` (b,) the sum;
    errors are means over a picture, both pictures get one noise and one level, drawn as the sampler's own are spread. generator:
    one, or one a pair. A scalar with its graph."""
    b, device, transformer = len(won), won.device, pipe.transformer
    noise, shift = randn_tensor(won.shape, generator=generator, device=device), pipe.scheduler.config.shift
    draw = lambda count, own: torch.rand(count, generator=own, device=own.device).to(device)
    level = torch.cat([draw(1, own) for own in generator]) if isinstance(generator, list) else draw(b, generator)
    sigma = (shift * level / (1 + (shift - 1) * level)).repeat(2)
    clean, noise = torch.cat([won, lost]), noise.repeat(2, 1, 1, 1)
    x, told = torch.lerp(clean, noise, sigma[:, None, None, None]), [p.repeat(2, *[1] * (p.ndim - 1)) for p in (prompt_embeds, pooled)]
    error = lambda: (_velocity(transformer, x, sigma, told) - (noise - clean)).square().flatten(1).mean(1)
    with torch.no_grad(), without_lora(transformer):
        base = error()
    better, worse = (error() - base).chunk(2)
    losses = -torch.nn.functional.logsigmoid(-beta / 2 * (better - worse))
    return losses.mean() if weights is None else (losses * weights).sum()


def tune(
    pipe: StableDiffusion3Pipeline,
    prompts: list[str],
    reward: Callable[[Tensor, list[str]], Tensor],
    update: Callable[..., RewardStep],
    *,
    batch: int,
    seed: int = 0,
    recipe: dict | None = None,
    **options,
) -> list[dict]:
    """Train the LoRA that `add_lora` made with loop.fit; returns its records, with the mean reward, pictures left out, JPEG size.

    reward(pixels (m, 3, h, w) in [0, 1], m prompts) -> (m,), higher is better: a scorer's `score`, say. update: `draft_step` or `dpo_step`
    with its options, as in partial(draft_step, steps=28, k=1). batch: prompts a step over all processes, of which each takes its
    part; the noise of a picture depends on seed, step and its place in the batch alone (where rewards are not finite, each process takes
    the mean over its own). options: fit's (steps, lr, checkpoint, ...). A LoRA that is active beside it stays frozen.
    Raises ValueError for a batch that the processes cannot share, for a LoRA of add_lora that is not active, and for a checkpoint of
    other prompts or of an `update` with other options.
    """
    state = PartialState(cpu=pipe.device.type == "cpu")
    if batch % state.num_processes:
        raise ValueError(f"batch must be a multiple of the {state.num_processes} processes, not {batch}")
    transformer, prompts = plain(pipe.transformer), _texts(prompts)
    if has_ours(transformer):
        train_ours(transformer)
    mine, (embeds, pooled) = slice(state.process_index, None, state.num_processes), encode(pipe, prompts)

    def loss_at(_, step: int):
        rows = batch_indices(step, n=len(prompts), size=batch, seed=seed)[mine]
        noise = [torch.Generator().manual_seed((seed * 1_000_003 + step) * 1009 + place) for place in range(batch)[mine]]
        own = lambda pixels, places: reward(pixels, [prompts[rows[i]] for i in places.tolist()])
        rewards, pixels, kept = update(pipe, embeds[rows], pooled[rows], own, generator=noise)
        mean = rewards[kept].mean()
        return -mean, {"reward": mean, "dropped": (~kept).sum(), "jpeg_kb": jpeg_bytes(pixels[kept]).mean() / 1000}

    recipe = (recipe or {}) | {
        "batch": batch,
        "prompts": files.digest(prompts),
        "update": identity.of(update),
        "reward": _of_reward(reward),
    }
    return fit(transformer, loss_at, seed=seed, recipe=recipe, **options)


def _of_reward(reward) -> object:
    """Which reward this is: a scorer's weights, or a function's code; what a function has in its hands may change while it runs."""
    owner = getattr(reward, "__self__", reward)
    if isinstance(owner, torch.nn.Module):
        return identity.of(owner)
    return identity.of_code(reward) if inspect.isfunction(reward) else identity.of(reward)


def _noise(pipe, count: int, size, generator) -> Tensor:
    config, scale, sides = pipe.transformer.config, pipe.vae_scale_factor, _sides(pipe, size)
    if any(side % (scale * config.patch_size) for side in sides):
        raise ValueError(f"size must be a multiple of {scale * config.patch_size} pixels, the transformer's patches, not {size}")
    return randn_tensor(
        (count, config.in_channels, *(side // scale for side in sides)), generator=generator, device=pipe.transformer.device
    )


def _velocity(transformer, x: Tensor, sigma: float | Tensor, told) -> Tensor:
    """float32 velocity (b, c, h, w) at x of level sigma, a number or (b,), told prompt embeddings and pooled."""
    time = torch.as_tensor(sigma, device=x.device).expand(len(x)) * 1000
    return transformer(x.to(told[0].dtype), *told, time, return_dict=False)[0].float()


def _sigmas(pipe: StableDiffusion3Pipeline, steps: int) -> Tensor:
    """(steps + 1,) noise levels from 1 to 0, by the pipeline's own scheduler as it stands. ValueError for one whose steps are no plain
    Euler steps between them."""
    scheduler = copy.deepcopy(pipe.scheduler)
    if scheduler.config.get("use_dynamic_shifting"):
        raise ValueError("dynamic shifting of the noise schedule is not supported; load the pipeline with a fixed `shift`")
    if scheduler.config.get("stochastic_sampling"):
        raise ValueError("a scheduler with stochastic_sampling is not supported: load the pipeline without it")
    scheduler.set_timesteps(steps)
    if len(scheduler.sigmas) != steps + 1 or scheduler.sigmas[-1] != 0:
        name = type(scheduler).__name__
        raise ValueError(f"{name} is not supported, its {steps} steps are no Euler steps: take a FlowMatchEulerDiscreteScheduler")
    return scheduler.sigmas


def _scored(pipe, latents: Tensor, rows: Tensor, reward) -> tuple[Tensor, Tensor]:
    """The pictures and their rewards."""
    pixels = decode(pipe, latents)
    score = reward(pixels, rows)
    if score.shape != rows.shape:
        raise ValueError(f"the reward of {len(rows)} pictures must have the shape ({len(rows)},), not {tuple(score.shape)}")
    return pixels, score


def _reward_gradient(pipe, latents: Tensor, rows: Tensor, reward, batch: int) -> tuple[RewardStep, Tensor]:
    """What the pictures are worth, and the gradient of -mean(reward) at the latents, a micro-batch of pictures at a time."""
    rewards, pixels, gradients = [], [], []
    for part, r in zip(latents.split(batch), rows.split(batch)):
        picture, score = _scored(pipe, part.requires_grad_(True), r, reward)
        if not score.requires_grad:
            raise ValueError("this reward has no gradient in the pixels: tune with dpo_step, which asks it for an order only")
        gradients.append(torch.autograd.grad(-score.sum(), part)[0])
        rewards.append(score.detach())
        pixels.append(picture.detach())
        del picture, score  # with their graph, before the next ones are made
    rewards, gradients = torch.cat(rewards), torch.cat(gradients)
    kept = rewards.isfinite() & gradients.flatten(1).isfinite().all(1) & latents.flatten(1).isfinite().all(1)
    if not kept.any():
        raise FloatingPointError(f"no picture of this batch has a finite reward and gradient; the rewards are {rewards.tolist()}")
    gradients = gradients.where(kept[:, None, None, None], 0) / kept.sum()
    return RewardStep(rewards, torch.cat(pixels), kept), gradients
