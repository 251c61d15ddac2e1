"""tuning.dpo."""

from collections.abc import Callable

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from icthp.tuning.lora import without_lora
from icthp.tuning.rewards import RewardStep, score_latents
from icthp.tuning.sampling import initial_noise, noise_levels, velocity


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
    transformer, sigmas, b = pipe.transformer, noise_levels(pipe, steps).tolist(), len(pooled)
    told, rows = (prompt_embeds.repeat(2, 1, 1), pooled.repeat(2, 1)), torch.arange(b, device=transformer.device).repeat(2)
    x = torch.cat([initial_noise(pipe, b, size, generator) for _ in range(2)])
    with torch.no_grad():
        for i in range(steps):
            x = x + (sigmas[i + 1] - sigmas[i]) * velocity(transformer, x, sigmas[i], told)
        parts = zip(x.split(decode_batch), rows.split(decode_batch))
        pixels, rewards = map(torch.cat, zip(*(score_latents(pipe, *part, reward) for part in parts)))
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
    error = lambda: (velocity(transformer, x, sigma, told) - (noise - clean)).square().flatten(1).mean(1)
    with torch.no_grad(), without_lora(transformer):
        base = error()
    better, worse = (error() - base).chunk(2)
    losses = -torch.nn.functional.logsigmoid(-beta / 2 * (better - worse))
    return losses.mean() if weights is None else (losses * weights).sum()
