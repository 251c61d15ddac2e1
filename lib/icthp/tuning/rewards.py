"""What the pictures of a tuning step are worth, and what the reward's gradient says at their latents."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from diffusers import StableDiffusion3Pipeline
from torch import Tensor

from icthp.tuning.flow import decode

Reward = Callable[[Tensor, Tensor], Tensor]  # pixels (m, 3, h, w) in [0, 1], rows (m,) int64 of their prompts -> (m,)


class RewardStep(NamedTuple):
    rewards: Tensor  # (b,) or (lv_samples * b,), detached
    pixels: Tensor  # the same pictures, (.., 3, h, w) in [0, 1], detached
    valid: Tensor  # (b,) or (lv_samples * b,) bool: has it a finite reward and gradient? the others were left out


def score_latents(pipe: StableDiffusion3Pipeline, latents: Tensor, rows: Tensor, reward: Reward) -> tuple[Tensor, Tensor]:
    """The pictures (m, 3, h, w) and their rewards (m,). ValueError for rewards of another shape."""
    pixels = decode(pipe, latents)
    rewards = reward(pixels, rows)
    if rewards.shape != rows.shape:
        raise ValueError(f"the reward of {len(rows)} pictures must have the shape ({len(rows)},), not {tuple(rewards.shape)}")
    return pixels, rewards


def reward_gradient(pipe: StableDiffusion3Pipeline, latents: Tensor, rows: Tensor, reward: Reward, batch: int) -> tuple[RewardStep, Tensor]:
    """What the pictures are worth, and the gradient of -mean(reward) at the latents, a micro-batch of pictures at a time. The mean is that
    of the valid pictures, the gradient of the others 0. ValueError for a reward without a gradient, FloatingPointError where no picture
    is valid."""
    parts = [_micro_batch(pipe, *part, reward) for part in zip(latents.split(batch), rows.split(batch))]
    rewards, pixels, gradients = map(torch.cat, zip(*parts))
    valid = rewards.isfinite() & gradients.flatten(1).isfinite().all(1) & latents.flatten(1).isfinite().all(1)
    if not valid.any():
        raise FloatingPointError(f"no picture of this batch has a finite reward and gradient; the rewards are {rewards.tolist()}")
    gradients = gradients.where(valid[:, None, None, None], 0) / valid.sum()
    return RewardStep(rewards, pixels, valid), gradients


def _micro_batch(pipe, latents: Tensor, rows: Tensor, reward: Reward) -> tuple[Tensor, Tensor, Tensor]:
    """Rewards, pictures, and the gradient of -sum(reward) at the latents; their graph ends here."""
    latents = latents.requires_grad_(True)
    pixels, rewards = score_latents(pipe, latents, rows, reward)
    if not rewards.requires_grad:
        raise ValueError("this reward has no gradient in the pixels: tune with fit_step, which asks it for values only")
    gradient = torch.autograd.grad(-rewards.sum(), latents)[0]
    return rewards.detach(), pixels.detach(), gradient
