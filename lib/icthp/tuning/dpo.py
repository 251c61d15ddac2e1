"""Diffusion-DPO (Wallace et al., arXiv 2311.12908) for flow matching: tuning on preferences, without a reward's gradient."""

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from icthp.tuning.flow import Sampler, initial_noise, velocity
from icthp.tuning.lora import without_lora
from icthp.tuning.rewards import Reward, RewardStep, score_latents


def dpo_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Reward,
    *,
    steps: int,
    generator: torch.Generator | list[torch.Generator],
    beta: float,
    size: int | tuple[int, int] | None = None,
    decode_batch: int = 16,
) -> RewardStep:
    """`draft_step`'s twin that asks the reward for an order only, never for a gradient: two pictures of each prompt by the tuned
    transformer, without guidance, of which the one with the higher reward is chosen; adds the gradient of `dpo_loss`. Pairs with a
    reward or a sample that is not finite are left out, equal ones have no gradient; FloatingPointError where no pair is left.
    Returns rewards, pixels and valid of (2 * b) pictures, the second ones of all prompts after the first."""
    b = len(pooled)
    sampler = Sampler(pipe, prompt_embeds, pooled, steps)
    x = torch.cat([initial_noise(pipe, b, size, generator) for _ in range(2)])
    rows = torch.arange(b, device=x.device).repeat(2)
    with torch.no_grad():
        x = sampler.denoise(x, range(steps), rows)
        parts = [score_latents(pipe, *part, reward) for part in zip(x.split(decode_batch), rows.split(decode_batch))]
        pixels, rewards = map(torch.cat, zip(*parts))
    first, second = rewards.chunk(2)
    valid = (rewards.isfinite() & x.flatten(1).isfinite().all(1)).view(2, b).all(0)
    if not valid.any():
        raise FloatingPointError(f"no pair of this batch has finite samples and rewards; they are {rewards.tolist()}")
    first_is_chosen = (first >= second)[:, None, None, None]
    chosen = torch.where(first_is_chosen, *x.chunk(2))
    rejected = torch.where(~first_is_chosen, *x.chunk(2))
    inputs = [_zero_invalid(valid, part) for part in (prompt_embeds, pooled, chosen, rejected)]
    weights = (valid & (first != second)) / valid.sum()
    dpo_loss(pipe, *inputs, beta=beta, generator=generator, weights=weights).backward()
    return RewardStep(rewards, pixels, valid.repeat(2))


def _zero_invalid(valid: Tensor, part: Tensor) -> Tensor:
    """0 in the rows that are not valid: they weigh 0, but 0 * NaN is NaN."""
    return part.where(valid.view(-1, *[1] * (part.ndim - 1)), 0)


def dpo_loss(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    chosen: Tensor,
    rejected: Tensor,
    *,
    beta: float,
    generator: torch.Generator | list[torch.Generator],
    weights: Tensor | None = None,
) -> Tensor:
    """Diffusion-DPO's loss (arXiv 2311.12908) for flow matching: a scalar with its graph.

    chosen, rejected (b, c, h, w): `latents` of the better and the worse picture of each prompt. -log sigmoid(-beta / 2 * (the chosen
    one's squared velocity error, less the untuned transformer's, less the same of the rejected one)), the mean over b, or with `weights`
    (b,) the sum; errors are means over a picture. Both pictures get one noise and one level, drawn as the sampler's own are spread.
    generator: one, or one a pair."""
    transformer = pipe.transformer
    noise = randn_tensor(chosen.shape, generator=generator, device=chosen.device)
    sigma = _draw_levels(pipe, len(chosen), generator, chosen.device).repeat(2)
    clean = torch.cat([chosen, rejected])
    noise = noise.repeat(2, 1, 1, 1)
    x = torch.lerp(clean, noise, sigma[:, None, None, None])
    cond = [part.repeat(2, *[1] * (part.ndim - 1)) for part in (prompt_embeds, pooled)]

    def error() -> Tensor:
        return (velocity(transformer, x, sigma, cond) - (noise - clean)).square().flatten(1).mean(1)

    with torch.no_grad(), without_lora(transformer):
        base_error = error()
    chosen_gain, rejected_gain = (error() - base_error).chunk(2)
    losses = -torch.nn.functional.logsigmoid(-beta / 2 * (chosen_gain - rejected_gain))
    return losses.mean() if weights is None else (losses * weights).sum()


def _draw_levels(pipe: StableDiffusion3Pipeline, count: int, generator, device: torch.device) -> Tensor:
    """(count,) noise levels in [0, 1), uniform but for the scheduler's shift."""
    shift = pipe.scheduler.config.shift
    if isinstance(generator, list):
        uniform = torch.cat([torch.rand(1, generator=each, device=each.device).to(device) for each in generator])
    else:
        uniform = torch.rand(count, generator=generator, device=generator.device).to(device)
    return shift * uniform / (1 + (shift - 1) * uniform)
