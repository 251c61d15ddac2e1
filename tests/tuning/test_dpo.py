"""Diffusion-DPO is its formula, and a step of it prefers the picture with the higher reward."""

import pytest
import torch
from test_draft import STEPS, lora, reward

from icthp.tuning import dpo, flow
from icthp.tuning.lora import without_lora


def test_dpo_is_its_formula(pipe, prompt):
    """One pair at a time, by hand; and log 2 for equal pictures, or where the LoRA is still new and does nothing."""
    chosen, rejected = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = lambda a, b: dpo.dpo_loss(pipe, *prompt, a, b, beta=5.0, generator=torch.Generator().manual_seed(2))
    generator, total = torch.Generator().manual_seed(2), 0
    noise, level = torch.randn(3, 4, 8, 8, generator=generator), torch.rand(3, generator=generator)

    def error(x0, i):
        sigma = 3 * level[i : i + 1] / (1 + 2 * level[i : i + 1])
        x = (1 - sigma) * x0[i : i + 1] + sigma * noise[i]
        v = pipe.transformer(x, *(p[i : i + 1] for p in prompt), sigma * 1000, return_dict=False)[0]
        return (v - (noise[i] - x0[i])).square().mean()

    for i in range(3):
        tuned = error(chosen, i) - error(rejected, i)
        with without_lora(pipe.transformer):
            base = error(chosen, i) - error(rejected, i)
        total = total - torch.nn.functional.logsigmoid(-5.0 / 2 * (tuned - base)) / 3
    assert loss(chosen, rejected).item() == pytest.approx(total.item(), rel=1e-4)
    assert loss(chosen, chosen).item() == pytest.approx(0.6931, abs=1e-4)
    gradient = torch.autograd.grad(loss(chosen, rejected), lora(pipe), allow_unused=True)
    assert sum(g.norm() for g in gradient if g is not None) > 0
    for name, p in pipe.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(p)
    assert loss(chosen, rejected).item() == pytest.approx(0.6931, abs=1e-4)


def test_a_dpo_step_prefers_the_higher_reward(pipe, prompt):
    """Its gradient is dpo_loss's on the two pictures in the order of their rewards; one without a finite reward leaves its pair out."""

    def run(change=lambda x: x):
        for p in lora(pipe):
            p.grad = None
        worth = lambda pixels, rows: change(reward(pixels, rows))
        step = dpo.dpo_step(pipe, *prompt, worth, steps=STEPS, beta=5.0, generator=torch.Generator().manual_seed(0))
        return step, torch.cat([p.grad.flatten() for p in lora(pipe)])

    step, found = run()
    generator = torch.Generator().manual_seed(0)
    sigma, x = flow.noise_levels(pipe, STEPS), torch.randn(3, 4, 8, 8, generator=generator)
    x = torch.cat([x, torch.randn(3, 4, 8, 8, generator=generator)])
    with torch.no_grad():
        for i in range(STEPS):
            v = pipe.transformer(x, *(p.repeat(2, *[1] * (p.ndim - 1)) for p in prompt), (sigma[i] * 1000).expand(6), return_dict=False)[0]
            x = x + (sigma[i + 1] - sigma[i]) * v
    rewards = reward(flow.decode(pipe, x), torch.arange(3).repeat(2))
    assert torch.allclose(step.rewards, rewards, atol=1e-5) and step.valid.all()
    rows = torch.arange(3)
    better = torch.where(rewards[:3] >= rewards[3:], rows, rows + 3)
    loss = dpo.dpo_loss(pipe, *prompt, x[better], x[(better + 3) % 6], beta=5.0, generator=generator)
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(loss, lora(pipe))])
    assert (found - whole).norm() <= 1e-4 * whole.norm()
    _, turned = run(lambda r: -r)
    assert torch.nn.functional.cosine_similarity(found, turned, dim=0) < 0
    step, _ = run(lambda r: r.where(torch.arange(len(r)) != 4, torch.nan))
    assert step.valid.tolist() == [True, False, True] * 2
    with pytest.raises(FloatingPointError, match="no pair"):
        run(lambda r: r * torch.nan)


def test_a_dpo_pair_that_is_not_finite_leaves_the_batch(pipe, prompt):
    """Its gradient is that of the batch without it."""

    def run(rows, embeds, worth=reward):
        for p in lora(pipe):
            p.grad = None
        noise = [torch.Generator().manual_seed(100 + i) for i in rows]
        step = dpo.dpo_step(pipe, embeds[rows], prompt[1][rows], worth, steps=STEPS, beta=5.0, generator=noise)
        return step, torch.cat([p.grad.flatten() for p in lora(pipe)])

    ill = prompt[0].clone()
    ill[1, 0, 0] = torch.inf
    (step, found), (_, expected) = run([0, 1, 2], ill), run([0, 2], prompt[0], lambda pixels, rows: reward(pixels, rows * 2))
    assert step.valid.tolist() == [True, False, True] * 2
    assert (found - expected).norm() <= 1e-4 * expected.norm() and expected.norm() > 0
    with pytest.raises(FloatingPointError, match="no pair"):
        run([1], ill, lambda pixels, rows: reward(pixels.nan_to_num(), rows))
