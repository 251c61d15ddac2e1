"""Own pictures, n of each prompt, noised anew: one step for every loss on how well the velocity fits them, whether it prefers one picture
to another or weighs each."""

from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from icthp.tuning.flow import Sampler, draw_levels, initial_noise, velocity
from icthp.tuning.lora import without_lora
from icthp.tuning.rewards import Reward, RewardStep, score_latents

Condition = tuple[Tensor, Tensor]  # embeddings (b, tokens, d) and pooled (b, p), from `encode`


# ---- own pictures -----------------------------------------------------------------------------------------------


@dataclass
class Group:
    """n pictures of each of b prompts: latents (b, n, c, h, w), rewards (b, n), and the condition of each of the n, the prompts' own or
    other captions."""

    latents: Tensor
    rewards: Tensor
    conditions: list[Condition]

    def part(self, rows: Tensor) -> "Group":
        """Those of these prompts."""
        return Group(self.latents[rows], self.rewards[rows], [tuple(x[rows] for x in condition) for condition in self.conditions])


def draw_group(
    pipe: StableDiffusion3Pipeline, prompt_embeds: Tensor, pooled: Tensor, reward: Reward, *, steps: int, n: int, generator, size,
    decode_batch: int
) -> tuple[Group, RewardStep, Tensor]:  # fmt: skip
    """n pictures of each prompt by the tuned transformer, without guidance or graph; what `draft_step` returns of them, the second ones of
    all prompts after the first; and (b,) which prompts are valid: the group has those alone, whose pictures and rewards are all finite.
    FloatingPointError where there is none."""
    b = len(pooled)
    x = torch.cat([initial_noise(pipe, b, size, generator) for _ in range(n)])
    rows = torch.arange(b, device=x.device).repeat(n)
    with torch.no_grad():
        x = Sampler(pipe, prompt_embeds, pooled, steps).denoise(x, range(steps), rows)
        pixels, rewards = score_all_latents(pipe, x, rows, reward, decode_batch)
    valid = finite_prompts(x, rewards, n)
    group = Group(by_prompt(x, n), by_prompt(rewards, n), [(prompt_embeds, pooled)] * n).part(valid)
    return group, RewardStep(rewards, pixels, valid.repeat(n)), valid


def score_all_latents(pipe, x: Tensor, rows: Tensor, reward: Reward, decode_batch: int) -> tuple[Tensor, Tensor]:
    """Pictures and rewards of `score_latents`, decode_batch at a time."""
    parts = [score_latents(pipe, *part, reward) for part in zip(x.split(decode_batch), rows.split(decode_batch))]
    pixels, rewards = map(torch.cat, zip(*parts))
    return pixels, rewards


def finite_prompts(x: Tensor, rewards: Tensor, n: int) -> Tensor:
    """(b,) bool: are all n samples of a prompt, x (n * b, c, h, w), and their rewards (n * b,) finite? FloatingPointError where no prompt's
    are."""
    valid = by_prompt(rewards.isfinite() & x.flatten(1).isfinite().all(1), n).all(1)
    if not valid.any():
        raise FloatingPointError(f"no prompt of this batch has finite samples and rewards alone; the rewards are {rewards.tolist()}")
    return valid


def by_prompt(x: Tensor, n: int) -> Tensor:
    """(n * b, ...), the second ones of all prompts after the first -> (b, n, ...)."""
    return x.unflatten(0, (n, -1)).transpose(0, 1)


def voted_pairs(chosen: Tensor, rejected: Tensor, condition: Condition) -> Group:
    """A group of pairs that somebody voted on: `latents` (b, c, h, w) of the better and the worse picture of each prompt."""
    rewards = chosen.new_tensor([1.0, 0.0]).expand(len(chosen), 2)
    return Group(torch.stack([chosen, rejected], 1), rewards, [condition] * 2)


# ---- which pictures, with which captions ------------------------------------------------------------------------


def as_drawn(group: Group, edited: Condition | None) -> Group:
    """All n pictures of a prompt."""
    return group


def best_and_worst(group: Group, edited: Condition | None) -> Group:
    """Two pictures of a prompt, that with the highest and that with the lowest of the n rewards."""
    order = torch.stack([group.rewards.argmax(1), group.rewards.argmin(1)], 1)
    latents = group.latents.gather(1, order[:, :, None, None, None].expand(-1, -1, *group.latents.shape[2:]))
    return Group(latents, group.rewards.gather(1, order), group.conditions[:2])


def one_picture_two_captions(group: Group, edited: Condition) -> Group:
    """TPO (arXiv 2509.25771): the first picture twice, of its own prompt and of the edited one, the first preferred; no reward decides."""
    rewards = group.rewards.new_tensor([1.0, 0.0]).expand(len(group.rewards), 2)
    return Group(group.latents[:, :1].expand(-1, 2, -1, -1, -1), rewards, [group.conditions[0], edited])


def caption_of_its_own(group: Group, edited: Condition) -> Group:
    """DCPO (arXiv 2502.06023): the best picture with the prompt, the worst with the edited one."""
    two = best_and_worst(group, edited)
    return Group(two.latents, two.rewards, [group.conditions[0], edited])


# ---- the fit ----------------------------------------------------------------------------------------------------


@dataclass
class Fit:
    """How the velocity fits pictures of b prompts, n of each, at one level each: what a loss reads.

    rewards, sigma (b, n); velocity, with its graph, and target, noise less latents (b, n, c, h, w). `error` (b, n): the mean squared
    difference of the two; `base`: the untuned transformer's velocity; `gain` (b, n): error less the untuned one's; `drift` (): the mean
    squared distance of the velocity from it."""

    rewards: Tensor
    sigma: Tensor
    velocity: Tensor
    target: Tensor
    base_of: Callable[[], Tensor]

    @cached_property
    def error(self) -> Tensor:
        return self._error(self.velocity)

    @cached_property
    def base(self) -> Tensor:
        return self.base_of()

    @cached_property
    def gain(self) -> Tensor:
        return self.error - self._error(self.base)

    @cached_property
    def drift(self) -> Tensor:
        return (self.velocity - self.base).square().mean()

    def _error(self, v: Tensor) -> Tensor:
        return (v - self.target).square().flatten(2).mean(2)


Loss = Callable[[Fit], Tensor]


def fit_loss(pipe: StableDiffusion3Pipeline, group: Group, loss: Loss, *, generator, shared_noise: bool = True, grid: int = 0) -> Tensor:
    """loss(Fit) of a group, own pictures or anybody's (`latents`), noised here: a scalar with its graph.

    shared_noise: the n pictures of a prompt get one noise and one level. grid: see `draw_levels`; a generator that was distilled to a few
    steps knows their levels best. generator: one, or one a prompt."""
    b, n = group.rewards.shape
    draws = [_noise_and_level(pipe, group.latents[:, 0], generator, grid) for _ in range(1 if shared_noise else n)]
    noise, sigma = (torch.stack(parts, 1).expand(b, n, *parts[0].shape[1:]) for parts in zip(*draws))
    x = torch.lerp(group.latents, noise, sigma[:, :, None, None, None]).flatten(0, 1)
    cond = [torch.stack(parts, 1).flatten(0, 1) for parts in zip(*group.conditions)]

    def velocity_of() -> Tensor:
        return velocity(pipe.transformer, x, sigma.flatten(), cond).unflatten(0, (b, n))

    def base_of() -> Tensor:
        with torch.no_grad(), without_lora(pipe.transformer):
            return velocity_of()

    return loss(Fit(group.rewards, sigma, velocity_of(), noise - group.latents, base_of))


def _noise_and_level(pipe, like: Tensor, generator, grid: int) -> tuple[Tensor, Tensor]:
    """(b, c, h, w) and (b,), drawn in this order."""
    noise = randn_tensor(like.shape, generator=generator, device=like.device)
    return noise, draw_levels(pipe, len(like), generator, grid)


def fit_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Reward,
    *,
    steps: int,
    generator: torch.Generator | list[torch.Generator],
    loss: Loss,
    n: int = 2,
    size: int | tuple[int, int] | None = None,
    levels: int = 1,
    fit_batch: int = 0,
    decode_batch: int = 16,
    edited: Condition | None = None,
    arrange: Callable[[Group, Condition | None], Group] = as_drawn,
    **noising,
) -> RewardStep:
    """`draft_step`'s twin that asks the reward for values only, never for a gradient: n pictures of each prompt by the tuned transformer,
    without guidance; adds the gradient of loss(Fit) at `levels` draws of noise and level (`fit_loss`, which takes `noising`). A prompt with
    a picture or reward that is not finite is left out; FloatingPointError where no prompt is left.

    loss: of `optimisers`, as in partial(dpo, beta=500.0). fit_batch: prompts whose graph is in memory at once, all for 0; losses that
    compare prompts (KTO's baseline, advantages over a batch) then see so many. arrange: which of the pictures are fitted, and to which
    caption, with `edited`, `encode` of another caption of each prompt.
    Returns rewards, pixels and valid of (n * b) pictures, the second ones of all prompts after the first."""
    options = {"steps": steps, "n": n, "generator": generator, "size": size, "decode_batch": decode_batch}
    group, result, valid = draw_group(pipe, prompt_embeds, pooled, reward, **options)
    group = arrange(group, None if edited is None else tuple(x[valid] for x in edited))
    b = len(group.rewards)
    generator = [each for each, ok in zip(generator, valid) if ok] if isinstance(generator, list) else generator
    for _ in range(levels):
        for rows in torch.arange(b, device=valid.device).split(fit_batch or b):
            noise = [generator[row] for row in rows.tolist()] if isinstance(generator, list) else generator
            part = fit_loss(pipe, group.part(rows), loss, generator=noise, **noising)
            (part * (len(rows) / (b * levels))).backward()
    return result
