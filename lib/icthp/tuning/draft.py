"""tuning.draft."""

import contextlib
from collections.abc import Callable

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from icthp.tuning.lora import merged, without_lora
from icthp.tuning.rewards import RewardStep, reward_gradient
from icthp.tuning.sampling import initial_noise, noise_levels


def draft_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Callable[[Tensor, Tensor], Tensor],
    *,
    steps: int,
    k: int = 1,
    lv_samples: int = 1,
    generator: torch.Generator | list[torch.Generator],
    size: int | tuple[int, int] | None = None,
    guidance: float = 0.0,
    negative: tuple[Tensor, Tensor] | None = None,
    anchor: float = 0.0,
    decode_batch: int = 16,
    recompute_last_steps: bool = False,
    merge: bool = False,
) -> RewardStep:
    """One DRaFT step: adds the gradient of -mean(reward) to the LoRA parameters'; the caller owns the optimiser.

    prompt_embeds (b, n, d), pooled (b, p): from `encode`. reward(pixels (m, 3, h, w), rows (m,) int64) -> (m,): rows says
    which prompts the pictures belong to; where it, its gradient at the picture or the sample itself is not finite, the picture is left
    out: rewards and gradients are those of the batch without it. steps: of the sampler, of which the last k keep their graph. lv_samples > 1:
    DRaFT-LV, the finished sample is noised lv_samples times to the last step's level and denoised once (k must be 1). generator: one, or one a
    prompt. size: pixels, one side or (height, width), default the transformer's. guidance above 1: classifier-free, away from
    `negative`, `encode` of one text. anchor: weight of the mean squared distance of the velocity from the untuned transformer's
    (`without_lora`), over the steps with a graph; with the sampler's noise that is their Kullback-Leibler divergence but for a factor of
    each level.

    Memory: decoder and reward see decode_batch pictures at a time. recompute_last_steps: the last k steps run twice, the second time with
    their graph, so that it is never there together with the decoder's; so they do where a picture is left out. merge: see `merged`.
    Raises ValueError for k outside 1..steps, guidance without `negative`, or a size that the patches do not divide; FloatingPointError
    where no picture is left.
    """
    if not 1 <= k <= steps or (lv_samples > 1 and k != 1):
        raise ValueError(f"k must lie in 1..{steps} (steps), and be 1 when lv_samples > 1; got k={k}, lv_samples={lv_samples}")
    if guidance > 1 and negative is None:
        raise ValueError('guidance above 1 needs negative=draft.encode(pipe, [""])')
    transformer, sigmas = pipe.transformer, noise_levels(pipe, steps).tolist()
    told, last = (prompt_embeds, pooled), range(steps - k, steps)
    x, rows = initial_noise(pipe, len(pooled), size, generator), torch.arange(len(pooled), device=transformer.device)

    def velocity(x: Tensor, i: int, rows: Tensor) -> Tensor:
        v = velocity(transformer, x, sigmas[i], [part[rows] for part in told])
        if guidance > 1:
            v0 = velocity(transformer, x, sigmas[i], [part.expand(len(x), *part.shape[1:]) for part in negative])
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
        x, _ = denoise(x, range(steps if lv_samples > 1 else steps - k), rows)
    if lv_samples > 1:
        noise = torch.cat([initial_noise(pipe, len(pooled), size, generator) for _ in range(lv_samples)])
        rows, x = rows.repeat(lv_samples), (1 - sigmas[-2]) * x.repeat(lv_samples, 1, 1, 1) + sigmas[-2] * noise
    with torch.set_grad_enabled(not recompute_last_steps):
        end, away = denoise(x, last, rows)
    result, cotangent = reward_gradient(pipe, end.detach(), rows, reward, decode_batch)
    kept = result.valid
    if recompute_last_steps or not kept.all():  # zero times the gradient of a sample that is not finite would be NaN
        end = away = None  # with the graph, before the next one is made
        end, away = denoise(x[kept], last, rows[kept])
        cotangent = cotangent[kept]
    torch.autograd.backward([end, anchor * away] if anchor else [end], [cotangent, None] if anchor else [cotangent])
    return result
