"""A reward's gradient that reaches single steps of a trajectory, never through the chain of them: one step for ReFL, DRTune, DRaFT-1 and
FlowBP-Sparse, one for SRPO's alignment, one for the regression to the reward's gradient."""

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from icthp.tuning.endpoint import Choice, Path, direct_align, draw_int
from icthp.tuning.flow import Sampler, initial_noise, of_the_batch
from icthp.tuning.matching import clip_norms, pull_loss
from icthp.tuning.rewards import Reward, RewardStep, reward_gradient


@torch.no_grad()
def _trajectory(sampler: Sampler, x: Tensor, rows: Tensor, first: int, path: Path) -> list[Tensor]:
    """The latents before each transition from step `first` on, and where the path ends."""
    states = [x]
    for i in range(first, path.stop):
        states.append(sampler.denoise(states[-1], range(i, i + 1), rows))
    if sampler.sigmas[path.stop] > 0:
        states.append(sampler.jump(states[-1], sampler.sigmas[path.stop], rows))
    return [None] * first + states


def jump_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Reward,
    *,
    steps: int,
    generator: torch.Generator | list[torch.Generator],
    path_of: Choice,
    size: int | tuple[int, int] | None = None,
    guidance: float = 0.0,
    negative: tuple[Tensor, Tensor] | None = None,
    pictures: Tensor | None = None,
    picture_weight: float = 0.0,
    noise_share: float = 0.0,
    decode_batch: int = 16,
) -> RewardStep:
    """`draft_step`'s cheaper twins: adds the gradient of -mean(reward) of `endpoint`, a path of the sampler's steps and a jump (`path_of`,
    of `endpoint`), whose active steps see latents without a graph. One of their graphs is in memory at a time, and none with the decoder's.

    pictures (b, c, h, w): ImageReFL (arXiv 2505.22569; TorchRik/HumanDiffusion@src/trainer/image_refl_trainer.py): latents of real pictures
    of the prompts, noised to a random level of the sampler's, from which the path begins; picture_weight: of the squared error of the
    velocity there, which is added; noise_share: how often a batch begins with noise all the same.
    What is not finite is left out, as `draft_step` does. ValueError for guidance without `negative`."""
    sampler = Sampler(pipe, prompt_embeds, pooled, steps, guidance=guidance, negative=negative)
    x = initial_noise(pipe, len(pooled), size, generator)
    rows = torch.arange(len(pooled), device=x.device)
    path = path_of(sampler.sigmas, of_the_batch(generator))
    first = 0
    if pictures is not None and torch.rand((), generator=of_the_batch(generator)) >= noise_share:
        first = draw_int(0, min(path.stop, min(path.active)) + 1, of_the_batch(generator))
        noise, x = x, torch.lerp(pictures, x, sampler.sigmas[first])
    states = _trajectory(sampler, x, rows, first, path)
    result, gradient = reward_gradient(pipe, states[-1], rows, reward, decode_batch)
    valid = result.valid
    ends = [*sampler.sigmas[: path.stop + 1], 0.0]
    for i in path.active:
        v = sampler.velocity_at(states[i][valid], sampler.sigmas[i], rows[valid])
        v.backward(path.factor * (ends[i + 1] - ends[i]) * gradient[valid])
    if first and picture_weight:
        v = sampler.velocity_at(states[first][valid], sampler.sigmas[first], rows[valid])
        (picture_weight * (v - (noise - pictures)[valid]).square().mean()).backward()
    return result


def align_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Reward,
    *,
    steps: int,
    generator: torch.Generator | list[torch.Generator],
    lowest: float = 0.1,
    highest: float = 0.95,
    inversion: bool = True,
    size: int | tuple[int, int] | None = None,
    decode_batch: int = 16,
) -> RewardStep:
    """SRPO's direct alignment (arXiv 2509.06942; Tencent-Hunyuan/SRPO@fastvideo/SRPO.py): finished pictures are noised to a known level,
    one step is taken with a graph, downwards and (`inversion`) upwards, and `direct_align` takes the rest of the noise away; adds the
    gradient of -mean(reward), upwards of mean(reward), for the slope has the other sign there. (SRPO swaps the two prompts of its relative
    reward, which is minus the reward but for their weights.)

    Two levels in lowest .. highest are drawn for each batch. Returns the pictures of the downward step. Needs: the reward's
    gradient. Cost: (T + 1) F + 1 G, with the inversion 1 F + 1 G and a reward more."""
    sampler = Sampler(pipe, prompt_embeds, pooled, steps)
    rows = torch.arange(len(pooled), device=pooled.device)
    with torch.no_grad():
        x0 = sampler.denoise(initial_noise(pipe, len(pooled), size, generator), range(steps), rows)
    noise = initial_noise(pipe, len(pooled), size, generator)
    low, high = (lowest + (highest - lowest) * torch.rand(2, generator=of_the_batch(generator))).sort().values.tolist()
    minus_reward = lambda pixels, rows: -reward(pixels, rows)
    results = []
    for branch, sigma, to in ((reward, high, low), (minus_reward, low, high))[: 1 + inversion]:
        x = torch.lerp(x0, noise, sigma)
        with torch.no_grad():
            ends = direct_align(x, sampler.velocity_at(x, sigma, rows), noise, sigma, to)
        result, gradient = reward_gradient(pipe, ends, rows, branch, decode_batch)
        v = sampler.velocity_at(x[result.valid], sigma, rows[result.valid])
        v.backward((to - sigma) / (1 - to) * gradient[result.valid])
        results.append(result)
    return results[0]


def pull_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Reward,
    *,
    steps: int,
    generator: torch.Generator | list[torch.Generator],
    strength: float,
    quantile: float = 0.8,
    size: int | tuple[int, int] | None = None,
    decode_batch: int = 16,
) -> RewardStep:
    """Reward Score Matching (arXiv 2604.17415): the reward's gradient at the finished latents, clipped at this quantile of the lengths,
    then `pull_loss` at every level of the rollout, with strength (1 - sigma) times `strength`. Needs: the reward's gradient. Cost: 2 T F +
    T G. Leaves out what is not finite, as `draft_step` does."""
    sampler = Sampler(pipe, prompt_embeds, pooled, steps)
    x = initial_noise(pipe, len(pooled), size, generator)
    rows = torch.arange(len(pooled), device=x.device)
    states = _trajectory(sampler, x, rows, 0, Path(steps, ()))
    result, gradient = reward_gradient(pipe, states[-1], rows, reward, decode_batch)
    valid = result.valid
    gradient = clip_norms(-gradient[valid] * valid.sum(), quantile)  # of each picture's own reward, not of minus their mean
    for i in range(steps):
        where = states[i][valid], sampler.sigmas[i], rows[valid]
        v, base = sampler.velocity_at(*where), sampler.base_velocity_at(*where)
        eta = gradient.new_full((len(v),), strength * (1 - sampler.sigmas[i]))
        (pull_loss(v, base, gradient, eta) / steps).backward()
    return result
