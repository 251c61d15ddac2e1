"""tuning.rewards."""

from typing import NamedTuple

import torch
from torch import Tensor

from icthp.tuning.sampling import decode


class RewardStep(NamedTuple):
    rewards: Tensor  # (b,) or (lv_samples * b,), detached
    pixels: Tensor  # the same pictures, (.., 3, h, w) in [0, 1], detached
    valid: Tensor  # (b,) or (lv_samples * b,) bool: has it a finite reward and gradient? the others were left out


def score_latents(pipe, latents: Tensor, rows: Tensor, reward) -> tuple[Tensor, Tensor]:
    """The pictures and their rewards."""
    pixels = decode(pipe, latents)
    score = reward(pixels, rows)
    if score.shape != rows.shape:
        raise ValueError(f"the reward of {len(rows)} pictures must have the shape ({len(rows)},), not {tuple(score.shape)}")
    return pixels, score


def reward_gradient(pipe, latents: Tensor, rows: Tensor, reward, batch: int) -> tuple[RewardStep, Tensor]:
    """What the pictures are worth, and the gradient of -mean(reward) at the latents, a micro-batch of pictures at a time."""
    rewards, pixels, gradients = [], [], []
    for part, r in zip(latents.split(batch), rows.split(batch)):
        picture, score = score_latents(pipe, part.requires_grad_(True), r, reward)
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
