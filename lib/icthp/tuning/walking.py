"""A sampler whose steps are random, so that each has a log-probability: one step for every loss on those of a whole rollout, one for
preferences among the candidates of a single step (SPO)."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from diffusers import StableDiffusion3Pipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from icthp.tuning.endpoint import draw_int
from icthp.tuning.fitting import by_prompt, finite_prompts, score_all_latents
from icthp.tuning.flow import Sampler, initial_noise, of_the_batch
from icthp.tuning.preferences import best_over_worst, clipped_log_ratio, pair_loss
from icthp.tuning.rewards import Reward, RewardStep
from icthp.tuning.stochastic import step_logp

Rule = Callable[[Tensor, Tensor, float, float], tuple[Tensor, float]]  # of `stochastic`: x, velocity, level, next level -> mean, deviation


@dataclass
class Transition:
    """One random step of a rollout, of b prompts, n pictures of each: what a loss reads.

    rewards (b, n) of the finished pictures; to (b, n, c, h, w): the latents that were drawn; mean: of the step now, with its graph; old:
    when it was drawn; std: its deviation. `base`: the untuned transformer's mean; `logp`, `old_logp`, `base_logp` (b, n): `step_logp`."""

    rewards: Tensor
    to: Tensor
    mean: Tensor
    old: Tensor
    std: float
    base_of: Callable[[], Tensor]

    @cached_property
    def base(self) -> Tensor:
        return self.base_of()

    @cached_property
    def logp(self) -> Tensor:
        return step_logp(self.to, self.mean, self.std)

    @cached_property
    def old_logp(self) -> Tensor:
        return step_logp(self.to, self.old, self.std)

    @cached_property
    def base_logp(self) -> Tensor:
        return step_logp(self.to, self.base, self.std)


def walk_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Reward,
    *,
    steps: int,
    generator: torch.Generator | list[torch.Generator],
    loss: Callable[[Transition], Tensor],
    rule: Rule,
    n: int = 4,
    size: int | tuple[int, int] | None = None,
    same_start: bool = False,
    random_steps: Sequence[int] | None = None,
    window: int = 0,
    decode_batch: int = 16,
) -> RewardStep:
    """n pictures of each prompt by `rule`'s random steps; adds the gradient of loss(Transition), the mean over the random steps. Asks the
    reward for values only. The generator of the rollout is the one that learns, so that ratios are 1 and the clipping of PPO's loss does
    not act. same_start: the n pictures begin with one noise, as DanceGRPO has it. random_steps: those with noise, which learn, all but
    the last for None; the others are Euler's. In a short schedule the one before the last is best left out too: of Stable Diffusion 3's
    four it goes down to a level of 0.009, where CPS has hardly any noise and an SDE's stays in the picture. window: so many of them,
    neighbours, drawn for the batch (MixGRPO, arXiv 2507.21802, whose window moves with the training); 0 for all.

    A prompt with a picture or reward that is not finite is left out; FloatingPointError where none is left, ValueError for steps or a
    window that do not fit. Returns what `fit_step` does."""
    random_steps = _noisy(steps, random_steps)
    if not 0 <= window <= len(random_steps):
        raise ValueError(f"window must be 0 or one of 1 to {len(random_steps)}, the steps with noise, not {window}")
    b = len(pooled)
    sampler = Sampler(pipe, prompt_embeds, pooled, steps)
    starts = [initial_noise(pipe, b, size, generator) for _ in range(1 if same_start else n)]
    x = torch.cat(starts * (n if same_start else 1))
    rows = torch.arange(b, device=x.device).repeat(n)
    if window:
        first = draw_int(0, len(random_steps) - window + 1, of_the_batch(generator))
        random_steps = random_steps[first : first + window]
    with torch.no_grad():
        states = _roll_out(sampler, x, rows, rule, generator, random_steps)
        pixels, rewards = score_all_latents(pipe, states[-1][0], rows, reward, decode_batch)
    chosen = finite_prompts(states[-1][0], rewards, n).repeat(n)
    for i in random_steps:
        (x, old, std), to = states[i], states[i + 1][0]
        values = (rewards[chosen], to[chosen], old[chosen])
        transition = _transition(sampler, i, x[chosen], rows[chosen], rule, std, n, *values)
        (loss(transition) / len(random_steps)).backward()
    return RewardStep(rewards, pixels, chosen)


def _noisy(steps: int, random_steps: Sequence[int] | None) -> list[int]:
    """The steps with noise, in their order; ValueError for one that has none."""
    if steps < 2:
        raise ValueError(f"the last step has no noise, so steps must be at least 2, not {steps}")
    found = sorted(set(range(steps - 1) if random_steps is None else random_steps))
    if not found or not set(found) <= set(range(steps - 1)):
        raise ValueError(f"random_steps must be some of 0 to {steps - 2}, the steps that may have noise, not {random_steps}")
    return found


def _roll_out(sampler: Sampler, x: Tensor, rows: Tensor, rule: Rule, generator, random_steps: list[int]) -> list:
    """(latents, mean of the step from there, its deviation) at each level, None and 0 before a step without noise and at the end."""
    states = []
    for i in range(len(sampler.sigmas) - 1):
        mean, std = _mean_of(sampler, i, x, rows, rule) if i in random_steps else (None, 0.0)
        states.append((x, mean, std))
        x = sampler.denoise(x, range(i, i + 1), rows) if mean is None else mean + std * _noise_like(x, generator)
    return [*states, (x, None, 0.0)]


def _mean_of(sampler: Sampler, i: int, x: Tensor, rows: Tensor, rule: Rule) -> tuple[Tensor, float]:
    return rule(x, sampler.velocity_at(x, sampler.sigmas[i], rows), sampler.sigmas[i], sampler.sigmas[i + 1])


def _noise_like(x: Tensor, generator) -> Tensor:
    """One noise a row; with a generator a prompt, the rows of a prompt take theirs in turn."""
    b = len(generator) if isinstance(generator, list) else len(x)
    return torch.cat([randn_tensor(part.shape, generator=generator, device=x.device) for part in x.split(b)])


def _transition(sampler: Sampler, i: int, x: Tensor, rows: Tensor, rule: Rule, std: float, n: int, rewards, to, old) -> Transition:
    def base_of() -> Tensor:
        v = sampler.base_velocity_at(x, sampler.sigmas[i], rows)
        return by_prompt(rule(x, v, sampler.sigmas[i], sampler.sigmas[i + 1])[0], n)

    mean, _ = _mean_of(sampler, i, x, rows, rule)
    return Transition(*(by_prompt(part, n) for part in (rewards, to, mean, old)), std, base_of)


# ---- preferences among the candidates of one step ---------------------------------------------------------------


def candidates_step(
    pipe: StableDiffusion3Pipeline,
    prompt_embeds: Tensor,
    pooled: Tensor,
    reward: Reward,
    *,
    steps: int,
    generator: torch.Generator | list[torch.Generator],
    rule: Rule,
    beta: float,
    clip: float = 0.1,
    n: int = 4,
    gap: float = 0.0,
    random_steps: Sequence[int] | None = None,
    size: int | tuple[int, int] | None = None,
    decode_batch: int = 16,
) -> RewardStep:
    """SPO (arXiv 2406.04314; RockeyCoss/SPO@spo_training_and_inference/train_scripts/train_spo.py): at each random step n candidates of the
    next latents, what each would become in one jump is scored, and the best is preferred to the worst where it leads by more than `gap`:
    -log sigmoid(beta log clip q - beta log clip q'), q the ratio to the untuned transformer's density. A random one goes on. SPO trains a
    reward on noisy latents; this one reads the pictures of the jumps. random_steps: as in `walk_step`; the jump from an early level tells
    little (SPO begins with the fourth of twenty). Needs: an order. Cost: (n + 2) F + 1 G and n rewards, a prompt and random step.

    Returns the finished pictures, one a prompt, as `draft_step` does; prompts that are not finite are left out of every step. ValueError
    for a random step that has no noise."""
    random_steps = _noisy(steps, random_steps)
    sampler = Sampler(pipe, prompt_embeds, pooled, steps)
    x = initial_noise(pipe, len(pooled), size, generator)
    rows = torch.arange(len(x), device=x.device)
    for i in range(steps):
        if i not in random_steps:
            with torch.no_grad():
                x = sampler.denoise(x, range(i, i + 1), rows)
            continue
        with torch.no_grad():
            mean, std = _mean_of(sampler, i, x, rows, rule)
            drawn = torch.stack([mean + std * _noise_like(mean, generator) for _ in range(n)], 1)
            rewards = torch.stack([_jump_rewards(pipe, sampler, i + 1, drawn[:, j], rows, reward, decode_batch) for j in range(n)], 1)
        valid = rewards.isfinite().all(1) & drawn.flatten(1).isfinite().all(1) & (rewards.amax(1) - rewards.amin(1) > gap)
        if valid.any():
            values = (rewards[valid].T.flatten(), drawn[valid].transpose(0, 1).flatten(0, 1), mean[valid].repeat(n, 1, 1, 1))
            step = _candidates(sampler, i, x[valid], rows[valid], rule, std, n, *values)
            score = beta * clipped_log_ratio(step.logp, step.base_logp, clip)
            (pair_loss(score, best_over_worst(step.rewards)) * (valid.sum() / (len(x) * len(random_steps)))).backward()
        x = drawn[:, 0]  # all were drawn alike
    with torch.no_grad():
        pixels, rewards = score_all_latents(pipe, x, rows, reward, decode_batch)
    valid = rewards.isfinite() & x.flatten(1).isfinite().all(1)
    if not valid.any():
        raise FloatingPointError(f"no picture of this batch is finite; the rewards are {rewards.tolist()}")
    return RewardStep(rewards, pixels, valid)


def _jump_rewards(pipe, sampler: Sampler, i: int, x: Tensor, rows: Tensor, reward: Reward, decode_batch: int) -> Tensor:
    """(b,): of the pictures that one jump from level i to the end makes."""
    return score_all_latents(pipe, sampler.jump(x, sampler.sigmas[i], rows), rows, reward, decode_batch)[1]


def _candidates(sampler: Sampler, i: int, x: Tensor, rows: Tensor, rule: Rule, std: float, n: int, rewards, to, old) -> Transition:
    """The transition of n candidates that one x and one velocity have in common."""
    own = _transition(sampler, i, x, rows, rule, std, 1, rewards[: len(x)], to[: len(x)], old[: len(x)])
    expand = lambda part: part.expand(-1, n, -1, -1, -1)
    return Transition(by_prompt(rewards, n), by_prompt(to, n), expand(own.mean), by_prompt(old, n), std, lambda: expand(own.base_of()))
