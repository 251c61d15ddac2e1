"""A reward's gradient in single steps is that of `endpoint` written out; DRaFT-1 is one of them."""

from functools import partial

import pytest
import torch
from test_draft import STEPS, lora, reward

from icthp.tuning import draft, endpoint, flow, jumping
from icthp.tuning.endpoint import Path


def run(pipe, prompt, step=jumping.jump_step, worth=reward, rows=(0, 1, 2), **options):
    for p in lora(pipe):
        p.grad = None
    generators = [torch.Generator().manual_seed(i) for i in rows]
    result = step(pipe, *(part[list(rows)] for part in prompt), worth, steps=STEPS, generator=generators, **options)
    return result, torch.cat([p.grad.flatten() for p in lora(pipe)])


def noise(count=3):
    return torch.cat([torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(i)) for i in range(count)])


def whole_gradient(pipe, loss):
    found = torch.autograd.grad(loss, lora(pipe), allow_unused=True)
    return torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(found, lora(pipe))])


@pytest.mark.parametrize("path", [
    Path(STEPS, (STEPS - 1,)), Path(1, (1,)), Path(2, (0, 2)), Path(STEPS, (0, 2), 1.5), Path(0, (0,))])  # fmt: skip
def test_a_jump_step_is_its_endpoint(pipe, prompt, path):
    result, found = run(pipe, prompt, path_of=lambda sigmas, generator: path)
    sampler = flow.Sampler(pipe, *prompt, STEPS)
    rows, x, v, coefficients = torch.arange(3), noise(), [], []
    levels = [*sampler.sigmas[: path.stop + 1], *([0.0] if path.stop < STEPS else [])]
    for i, (sigma, to) in enumerate(zip(levels, levels[1:])):
        velocity = sampler.velocity_at(x, sigma, rows)
        if i in path.active:
            v.append(velocity)
            coefficients.append(path.factor * (to - sigma))
        x = (x + (to - sigma) * velocity).detach()
    end = endpoint.endpoint(x, torch.stack(v), torch.tensor(coefficients))
    rewards = reward(flow.decode(pipe, end), rows)
    whole = whole_gradient(pipe, -rewards.mean())
    assert torch.allclose(result.rewards, rewards, atol=1e-5)
    assert (found - whole).norm() <= 1e-4 * whole.norm() and whole.norm() > 0


def test_the_last_step_is_draft_1(pipe, prompt):
    _, found = run(pipe, prompt, path_of=endpoint.last_step)
    _, draft_1 = run(pipe, prompt, draft.draft_step, k=1)
    assert (found - draft_1).norm() <= 1e-5 * draft_1.norm()


@pytest.mark.parametrize("step", [
    partial(jumping.jump_step, path_of=endpoint.refl), partial(jumping.jump_step, path_of=endpoint.drtune),
    partial(jumping.jump_step, path_of=endpoint.sparse), jumping.align_step,
    partial(jumping.pull_step, strength=10.0, quantile=1.0)])  # fmt: skip
def test_what_is_not_finite_leaves_the_batch(pipe, prompt, step):
    ill = lambda pixels, rows: reward(pixels, rows).where(rows != 2, torch.nan)
    result, found = run(pipe, prompt, step, ill)
    assert result.valid.tolist() == [True, True, False] and found.isfinite().all()
    _, expected = run(pipe, prompt, step, rows=(0, 1))
    assert (found - expected).norm() <= 1e-4 * expected.norm() and expected.norm() > 0
    with pytest.raises(FloatingPointError, match="no picture"):
        run(pipe, prompt, step, lambda pixels, rows: reward(pixels, rows) * torch.nan)


def test_real_pictures_begin_the_path(pipe, prompt):
    """ImageReFL: noised to a random level of the sampler's; with noise_share 1 they are not asked."""
    pictures = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    path_of = lambda sigmas, generator: Path(2, (2,))
    plain, of_noise = run(pipe, prompt, path_of=path_of)
    again, same = run(pipe, prompt, path_of=path_of, pictures=pictures, noise_share=1.0)
    assert torch.equal(plain.rewards, again.rewards) and torch.equal(of_noise, same)
    firsts = set()
    for seed in range(12):
        generator = torch.Generator().manual_seed(seed)
        found = jumping.jump_step(pipe, *prompt, reward, steps=STEPS, generator=generator, path_of=path_of, pictures=pictures)
        firsts.add(found.rewards[0].item())
    assert len(firsts) == 12


def test_the_error_at_the_pictures_is_added(pipe, prompt):
    pictures = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(9))
    path_of = lambda sigmas, generator: Path(2, (2,))
    find = lambda seed, weight: run_with(pipe, prompt, seed, path_of=path_of, pictures=pictures, picture_weight=weight)
    seed = next(seed for seed in range(20) if not torch.equal(find(seed, 0.0), find(seed, 1.0)))
    generator = torch.Generator().manual_seed(seed)
    noise = torch.randn(3, 4, 8, 8, generator=generator)
    torch.rand((), generator=generator)
    first = endpoint.draw_int(0, 3, generator)
    sampler = flow.Sampler(pipe, *prompt, STEPS)
    v = sampler.velocity_at(torch.lerp(pictures, noise, sampler.sigmas[first]), sampler.sigmas[first], torch.arange(3))
    added = whole_gradient(pipe, 0.5 * (v - (noise - pictures)).square().mean())
    assert (find(seed, 0.5) - find(seed, 0.0) - added).norm() <= 1e-4 * added.norm()


def run_with(pipe, prompt, seed, **options):
    for p in lora(pipe):
        p.grad = None
    jumping.jump_step(pipe, *prompt, reward, steps=STEPS, generator=torch.Generator().manual_seed(seed), **options)
    return torch.cat([p.grad.flatten() for p in lora(pipe)])


@pytest.mark.parametrize("inversion", [False, True])
def test_alignment_is_its_formula(pipe, prompt, inversion):
    """Each branch end to end by autograd, from the same levels and noise."""
    _, found = run(pipe, prompt, jumping.align_step, inversion=inversion)
    generators = [torch.Generator().manual_seed(i) for i in range(3)]
    draw = lambda: torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators])
    sampler, rows = flow.Sampler(pipe, *prompt, STEPS), torch.arange(3)
    with torch.no_grad():
        x0 = sampler.denoise(draw(), range(STEPS), rows)
    eps = draw()
    low, high = sorted((0.1 + 0.85 * torch.rand(2, generator=generators[0])).tolist())
    total = 0
    for sign, sigma, to in ((-1, high, low), (1, low, high))[: 1 + inversion]:
        x = (1 - sigma) * x0 + sigma * eps
        end = (x + (to - sigma) * sampler.velocity_at(x, sigma, rows) - to * eps) / (1 - to)
        total = total + sign * reward(flow.decode(pipe, end), rows).mean()
    whole = whole_gradient(pipe, total)
    assert (found - whole).norm() <= 1e-4 * whole.norm() and whole.norm() > 0


def test_pull_is_its_formula(pipe, prompt):
    result, found = run(pipe, prompt, jumping.pull_step, strength=10.0, quantile=1.0)
    sampler, rows, states = flow.Sampler(pipe, *prompt, STEPS), torch.arange(3), [noise()]
    with torch.no_grad():
        for i in range(STEPS):
            states.append(sampler.denoise(states[-1], range(i, i + 1), rows))
    end = states[-1].clone().requires_grad_()
    of_reward = torch.autograd.grad(reward(flow.decode(pipe, end), rows).sum(), end)[0]
    total = 0
    for i in range(STEPS):
        sigma = sampler.sigmas[i]
        target = sampler.base_velocity_at(states[i], sigma, rows) - (1 - sigma) * 10.0 * of_reward
        total = total + (sampler.velocity_at(states[i], sigma, rows) - target).square().mean() / STEPS
    whole = whole_gradient(pipe, total)
    assert (found - whole).norm() <= 1e-4 * whole.norm() and whole.norm() > 0


def test_guidance_needs_a_negative_prompt(pipe, prompt):
    with pytest.raises(ValueError, match="negative"):
        run(pipe, prompt, path_of=endpoint.last_step, guidance=3.0)
    negative = tuple(part[:1] for part in prompt)
    _, found = run(pipe, prompt, path_of=endpoint.last_step, guidance=3.0, negative=negative)
    _, draft_1 = run(pipe, prompt, draft.draft_step, k=1, guidance=3.0, negative=negative)
    assert (found - draft_1).norm() <= 1e-5 * draft_1.norm()
