"""A fit step draws its pictures, noises them and leaves the gradient of its loss; with Diffusion-DPO's it is DPO, written out here."""

from functools import partial

import pytest
import torch
from test_draft import STEPS, lora, reward

from icthp import tuning
from icthp.tuning import fitting, flow, optimisers
from icthp.tuning.lora import without_lora

DPO = partial(optimisers.dpo, beta=5.0)


def dpo_loss(pipe, embeds, pooled, chosen, rejected, generator):
    return fitting.fit_loss(pipe, fitting.voted_pairs(chosen, rejected, (embeds, pooled)), DPO, generator=generator)


def test_dpo_is_its_formula(pipe, prompt):
    """One pair at a time, by hand; and log 2 for equal pictures, or where the LoRA is still new and does nothing."""
    chosen, rejected = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = lambda a, b: dpo_loss(pipe, *prompt, a, b, torch.Generator().manual_seed(2))
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
    """Its gradient is DPO's on the two pictures in the order of their rewards; one without a finite reward leaves its pair out."""

    def run(change=lambda x: x):
        for p in lora(pipe):
            p.grad = None
        worth = lambda pixels, rows: change(reward(pixels, rows))
        step = fitting.fit_step(pipe, *prompt, worth, steps=STEPS, loss=DPO, generator=torch.Generator().manual_seed(0))
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
    loss = dpo_loss(pipe, *prompt, x[better], x[(better + 3) % 6], generator)
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(loss, lora(pipe))])
    assert (found - whole).norm() <= 1e-4 * whole.norm()
    _, turned = run(lambda r: -r)
    assert torch.nn.functional.cosine_similarity(found, turned, dim=0) < 0
    step, _ = run(lambda r: r.where(torch.arange(len(r)) != 4, torch.nan))
    assert step.valid.tolist() == [True, False, True] * 2
    with pytest.raises(FloatingPointError, match="no prompt"):
        run(lambda r: r * torch.nan)


def test_a_dpo_pair_that_is_not_finite_leaves_the_batch(pipe, prompt):
    """Its gradient is that of the batch without it."""

    def run(rows, embeds, worth=reward):
        for p in lora(pipe):
            p.grad = None
        noise = [torch.Generator().manual_seed(100 + i) for i in rows]
        step = fitting.fit_step(pipe, embeds[rows], prompt[1][rows], worth, steps=STEPS, loss=DPO, generator=noise)
        return step, torch.cat([p.grad.flatten() for p in lora(pipe)])

    ill = prompt[0].clone()
    ill[1, 0, 0] = torch.inf
    (step, found), (_, expected) = run([0, 1, 2], ill), run([0, 2], prompt[0], lambda pixels, rows: reward(pixels, rows * 2))
    assert step.valid.tolist() == [True, False, True] * 2
    assert (found - expected).norm() <= 1e-4 * expected.norm() and expected.norm() > 0
    with pytest.raises(FloatingPointError, match="no prompt"):
        run([1], ill, lambda pixels, rows: reward(pixels.nan_to_num(), rows))


def gradient(pipe, prompt, seed=0, **options):
    for p in lora(pipe):
        p.grad = None
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompt[1]))]
    step = fitting.fit_step(pipe, *prompt, reward, steps=STEPS, generator=generators, **options)
    return step, torch.cat([p.grad.flatten() for p in lora(pipe)])


@pytest.mark.parametrize("shared_noise", [True, False])
def test_parts_of_a_batch_are_the_batch(pipe, prompt, shared_noise):
    """In bits of one prompt's graph at a time; and two levels are the mean of two steps' losses."""
    options = {"loss": DPO, "n": 3, "shared_noise": shared_noise}
    (step, whole), (_, parts) = gradient(pipe, prompt, **options), gradient(pipe, prompt, fit_batch=1, **options)
    assert (whole - parts).norm() <= 1e-5 * whole.norm() and whole.norm() > 0
    assert step.rewards.shape == step.valid.shape == (9,) and step.pixels.shape[0] == 9


def test_what_a_loss_reads(pipe, prompt):
    """Its shapes; its own picture's noise, shared or not; the base is the untuned velocity; levels of a grid are the sampler's."""
    found = []
    keep = lambda fit: found.append(fit) or fit.gain.mean()
    latents, rewards = torch.randn(3, 4, 4, 8, 8, generator=torch.Generator().manual_seed(0)), torch.zeros(3, 4)
    group = fitting.Group(latents, rewards, [prompt] * 4)
    for options in ({}, {"shared_noise": False}, {"grid": STEPS}):
        fitting.fit_loss(pipe, group, keep, generator=torch.Generator().manual_seed(0), **options)
    shared, own, grid = found
    assert shared.velocity.shape == shared.target.shape == (3, 4, 4, 8, 8) and shared.error.shape == shared.gain.shape == (3, 4)
    noise = shared.target + latents
    assert torch.allclose(noise[:, 0], noise[:, 3], atol=1e-6) and (shared.sigma == shared.sigma[:, :1]).all()
    assert not torch.allclose((own.target + latents)[:, 0], (own.target + latents)[:, 1]) and (own.sigma[:, 0] != own.sigma[:, 1]).all()
    assert set(grid.sigma.flatten().tolist()) <= set(flow.noise_levels(pipe, STEPS)[:-1].tolist())
    x = torch.lerp(latents, noise, shared.sigma[:, :, None, None, None])
    with torch.no_grad(), without_lora(pipe.transformer):
        base = flow.velocity(pipe.transformer, x[:, 1], shared.sigma[:, 1], prompt)
    assert torch.allclose(shared.base[:, 1], base, atol=1e-5) and not shared.base.requires_grad


def test_pictures_and_captions_are_whose_the_method_says(pipe, prompt):
    other = tuple(part.roll(1, 0) for part in prompt)
    latents, rewards = torch.randn(3, 2, 4, 8, 8), torch.tensor([[0.0, 1.0], [1.0, 0.0], [0.0, 2.0]])
    group = fitting.Group(latents, rewards, [prompt] * 2)
    two = fitting.one_picture_two_captions(group, other)
    assert torch.equal(two.latents[:, 1], latents[:, 0]) and two.rewards.tolist() == [[1, 0]] * 3 and two.conditions == [prompt, other]
    drawn = fitting.Group(torch.randn(2, 3, 4, 8, 8), torch.tensor([[0.0, 2.0, 1.0], [5.0, 5.0, 5.0]]), [prompt] * 3)
    ends = fitting.best_and_worst(drawn, None)
    assert torch.equal(ends.latents[0], drawn.latents[0, [1, 0]]) and ends.rewards[0].tolist() == [2, 0] and len(ends.conditions) == 2
    assert torch.equal(fitting.as_drawn(drawn, None).latents, drawn.latents)
    own = fitting.caption_of_its_own(group, other)
    assert torch.equal(own.latents[0], latents[0].flip(0)) and torch.equal(own.latents[1], latents[1]) and own.conditions == [prompt, other]
    assert own.rewards.tolist() == [[1, 0], [1, 0], [2, 0]]
    for arrange in (fitting.one_picture_two_captions, fitting.caption_of_its_own):
        _, found = gradient(pipe, prompt, loss=DPO, arrange=arrange, edited=other)
        assert found.norm() > 0
    _, nothing = gradient(pipe, prompt, loss=DPO, arrange=fitting.one_picture_two_captions, edited=prompt)
    assert nothing.norm() <= 1e-5 * found.norm()  # both captions say the same


def test_tune_hands_on_what_it_makes_of_a_batchs_prompts(pipe):
    """And tells runs by it."""
    texts = ["a red circle", "two blue stars"]
    edited = {"edited": lambda prompts: tuning.encode(pipe, [prompt + " on white" for prompt in prompts])}
    update = partial(fitting.fit_step, steps=2, loss=DPO, arrange=fitting.caption_of_its_own)
    worth = lambda pixels, prompts: pixels.mean((1, 2, 3))
    history = tuning.tune(pipe, texts, worth, update, batch=2, steps=2, lr=1e-3, inputs=edited)
    assert len(history) == 2 and history[0]["grad_norm"] > 0
