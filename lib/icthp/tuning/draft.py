"""DRaFT-K and DRaFT-LV (Clark et al., arXiv 2309.17400) on a flow-matching diffusers pipeline.

Sample from noise without a graph, keep the graph of the last k steps, decode, score, and send the reward's gradient back
into the LoRA parameters. Decoder and reward hold their graph for one micro-batch at a time: their gradient with respect
to the latents is all that the transformer's backward pass needs.
"""

import contextlib

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from icthp.tuning.flow import Sampler, initial_noise
from icthp.tuning.lora import merged
from icthp.tuning.rewards import Reward, RewardStep, reward_gradient


def draft_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Reward,
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
    """One DRaFT step: adds the gradient of -mean(reward) to the LoRA parameters'; the caller owns the optimiser. Needs: the reward's
    gradient. Cost: (T - k) F + k G, with an anchor k F more; for lv_samples T F + lv_samples G, and as many rewards.

    prompt_embeds (b, n, d), pooled (b, p): from `encode`. reward(pixels (m, 3, h, w), rows (m,) int64) -> (m,): rows says
    which prompts the pictures belong to; where it, its gradient at the picture or the sample itself is not finite, the picture is left
    out: rewards and gradients are those of the batch without it. steps: of the sampler, of which the last k keep their graph. lv_samples
    above 1: DRaFT-LV, the finished sample is noised lv_samples times to the last step's level and denoised once (k must be 1). generator:
    one, or one a prompt. size: pixels, one side or (height, width), default the transformer's. guidance above 1: classifier-free, away
    from `negative`, `encode` of one text. anchor: weight of the mean squared distance of the velocity from the untuned transformer's
    (`without_lora`), over the steps with a graph; with the sampler's noise that is their Kullback-Leibler divergence but for a factor of
    each level.

    Memory: decoder and reward see decode_batch pictures at a time. recompute_last_steps: the last k steps run twice, the second time with
    their graph, of decode_batch pictures at a time, so that it is never there together with the decoder's; all of them so where a picture
    is left out. merge: see `merged`.
    Raises ValueError for k outside 1..steps, guidance without `negative`, or a size that the patches do not divide; FloatingPointError
    where no picture is left.
    """
    if not 1 <= k <= steps or (lv_samples > 1 and k != 1):
        raise ValueError(f"k must lie in 1..{steps} (steps), and be 1 when lv_samples > 1; got k={k}, lv_samples={lv_samples}")
    sampler = Sampler(pipe, prompt_embeds, pooled, steps, guidance=guidance, negative=negative)
    x = initial_noise(pipe, len(pooled), size, generator)
    rows = torch.arange(len(pooled), device=x.device)
    with torch.no_grad(), merged(pipe.transformer) if merge else contextlib.nullcontext():
        x = sampler.denoise(x, range(steps if lv_samples > 1 else steps - k), rows)
    if lv_samples > 1:
        noise = torch.cat([initial_noise(pipe, len(pooled), size, generator) for _ in range(lv_samples)])
        x = sampler.noise_to_last_step(x.repeat(lv_samples, 1, 1, 1), noise)
        rows = rows.repeat(lv_samples)

    def last_steps(x: Tensor, rows: Tensor) -> list[Tensor]:
        """The finished latents and, where it is asked for, the anchor's loss."""
        if anchor and torch.is_grad_enabled():
            latents, anchor_loss = sampler.denoise_anchored(x, range(steps - k, steps), rows)
            return [latents, anchor * anchor_loss]
        return [sampler.denoise(x, range(steps - k, steps), rows)]

    with torch.set_grad_enabled(not recompute_last_steps):
        outputs = last_steps(x, rows)
    result, gradient = reward_gradient(pipe, outputs[0].detach(), rows, reward, decode_batch)
    again = recompute_last_steps or not result.valid.all()
    if again:  # zero times the gradient of a sample that is not finite would be NaN
        del outputs  # with the graph, before the next one is made
        x, rows, gradient = x[result.valid], rows[result.valid], gradient[result.valid]
    parts = torch.arange(len(rows), device=x.device).split(decode_batch if recompute_last_steps else len(rows))
    for part in parts:
        if again:
            outputs = last_steps(x[part], rows[part])
        if anchor:
            outputs[1] = outputs[1] * (len(part) / len(rows))  # a mean over the batch
        torch.autograd.backward(outputs, [gradient[part], None] if anchor else [gradient[part]])
    return result
