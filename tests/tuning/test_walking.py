"""Random rollouts: their gradient is that of the loss on the transitions that they drew, step by step."""

from functools import partial

import pytest
import torch
from test_draft import STEPS, lora, reward

from icthp.tuning import flow, optimisers, stochastic, walking

RULE = partial(stochastic.coefficients_preserving, eta=0.6)


def run(pipe, prompt, step=walking.walk_step, worth=reward, seed=0, **options):
    for p in lora(pipe):
        p.grad = None
    generators = [torch.Generator().manual_seed(seed + i) for i in range(len(prompt[1]))]
    result = step(pipe, *prompt, worth, steps=STEPS, generator=generators, rule=RULE, **options)
    return result, torch.cat([p.grad.flatten() for p in lora(pipe)])


@pytest.mark.parametrize("seed, window, over", [(0, 0, "batch"), (0, 1, "prompt"), (5, 1, "batch"), (0, 2, "batch")])
def test_a_walk_is_the_score_function_of_its_steps(pipe, prompt, seed, window, over):
    """The gradient of -A log p, by hand, over the transitions that the rollout drew: all, or those of a window that was drawn."""
    result, found = run(pipe, prompt, loss=partial(optimisers.flow_grpo, kl=0.0, over=over), n=2, seed=seed, window=window)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(3)]
    draw = lambda: torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators])
    x, rows = torch.cat([draw(), draw()]), torch.arange(3).repeat(2)
    first = int(torch.randint(0, STEPS - window, (), generator=generators[0])) if window else 0
    random_steps = range(first, first + (window or STEPS - 1))
    sampler = flow.Sampler(pipe, *prompt, STEPS)
    steps = {}
    with torch.no_grad():
        for i in range(STEPS - 1):
            if i not in random_steps:
                x = sampler.denoise(x, range(i, i + 1), rows)
                continue
            mean, std = RULE(x, sampler.velocity_at(x, sampler.sigmas[i], rows), sampler.sigmas[i], sampler.sigmas[i + 1])
            to = mean + std * torch.cat([draw(), draw()])
            steps[i] = x, to, std
            x = to
        x = sampler.denoise(x, range(STEPS - 1, STEPS), rows)
        rewards = reward(flow.decode(pipe, x), rows)
    assert torch.allclose(result.rewards, rewards, atol=1e-5)
    table = rewards.view(2, 3).T
    deviation = table.std() if over == "batch" else table.std(1, keepdim=True)
    advantage = ((table - table.mean(1, keepdim=True)) / (deviation + 1e-4)).T.flatten()
    total = 0
    for i, (x, to, std) in steps.items():
        mean, _ = RULE(x, sampler.velocity_at(x, sampler.sigmas[i], rows), sampler.sigmas[i], sampler.sigmas[i + 1])
        logp = torch.distributions.Normal(mean, std).log_prob(to).mean((1, 2, 3))
        total = total - (advantage * logp).mean() / len(steps)
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(total, lora(pipe))])
    assert (found - whole).norm() <= 1e-4 * whole.norm() and whole.norm() > 0


@pytest.mark.parametrize("loss", [optimisers.flow_grpo, optimisers.pref_grpo, optimisers.grpo_guard, optimisers.pso_online])
def test_what_is_not_finite_leaves_its_prompt(pipe, prompt, loss):
    (step, found), rows = run(pipe, prompt, loss=loss, n=2), [0, 2]
    assert step.valid.all() and found.norm() > 0
    ill = lambda pixels, places: reward(pixels, places).where(places != 1, torch.nan)
    step, without = run(pipe, prompt, worth=ill, loss=loss, n=2)
    assert step.valid.tolist() == [True, False, True] * 2
    generators = [torch.Generator().manual_seed(i) for i in rows]
    for p in lora(pipe):
        p.grad = None
    part = tuple(x[rows] for x in prompt)
    walking.walk_step(
        pipe, *part, lambda pixels, places: reward(pixels, places * 2), steps=STEPS, generator=generators, rule=RULE, loss=loss, n=2
    )
    expected = torch.cat([p.grad.flatten() for p in lora(pipe)])
    assert (without - expected).norm() <= 1e-4 * expected.norm()
    with pytest.raises(FloatingPointError, match="no prompt"):
        run(pipe, prompt, worth=lambda pixels, places: reward(pixels, places) * torch.nan, loss=loss, n=2)


def test_a_start_in_common(pipe, prompt):
    """DanceGRPO's pictures of a prompt differ by the noise of the steps alone."""
    quiet = partial(stochastic.constant_sde, eta=1e-6)
    make = partial(walking.walk_step, pipe, *prompt, reward, steps=STEPS, loss=optimisers.pref_grpo, n=2, rule=quiet)
    first, second = make(generator=torch.Generator().manual_seed(0), same_start=True).pixels.chunk(2)
    assert (first - second).abs().max() < 1e-3
    first, second = make(generator=torch.Generator().manual_seed(0)).pixels.chunk(2)
    assert (first - second).abs().max() > 1e-2
    with pytest.raises(ValueError, match="at least 2"):
        walking.walk_step(pipe, *prompt, reward, steps=1, generator=torch.Generator(), rule=quiet, loss=optimisers.pref_grpo)
    for window in (-1, STEPS):
        with pytest.raises(ValueError, match=f"0 or one of 1 to {STEPS - 1}, the steps with noise, not {window}"):
            make(generator=torch.Generator(), window=window)


def test_candidates_prefer_the_better_jump(pipe, prompt):
    """SPO raises the reward of the jumps that it compared: its gradient turns with the reward, and none where all are alike."""
    step, found = run(pipe, prompt, walking.candidates_step, beta=5.0)
    _, turned = run(pipe, prompt, walking.candidates_step, worth=lambda pixels, rows: -reward(pixels, rows), beta=5.0)
    assert step.rewards.shape == (3,) and found.norm() > 0
    assert torch.nn.functional.cosine_similarity(found, turned, dim=0) < 0
    flat = lambda pixels, rows: torch.zeros(len(rows))
    with pytest.raises(AttributeError):  # nothing was left in any parameter
        run(pipe, prompt, walking.candidates_step, worth=flat, beta=5.0)
    with pytest.raises(AttributeError):
        run(pipe, prompt, walking.candidates_step, beta=5.0, gap=1e9)
    with pytest.raises(ValueError, match=f"first must be one of 0 to {STEPS - 2}, the steps with noise, not {STEPS - 1}"):
        run(pipe, prompt, walking.candidates_step, beta=5.0, first=STEPS - 1)


@pytest.mark.parametrize("steps, first", [(2, 0), (3, 1)])
def test_one_candidate_step_by_hand(pipe, prompt, steps, first):
    """The candidates of the only random step, the last but one, their jumps, best over worst; the steps before are Euler's."""
    generator = torch.Generator().manual_seed(0)
    for p in lora(pipe):
        p.grad = None
    walking.candidates_step(pipe, *prompt, reward, steps=steps, generator=generator, rule=RULE, beta=5.0, n=3, first=first)
    found = torch.cat([p.grad.flatten() for p in lora(pipe)])
    generator = torch.Generator().manual_seed(0)
    x, rows = torch.randn(3, 4, 8, 8, generator=generator), torch.arange(3)
    sampler = flow.Sampler(pipe, *prompt, steps)
    with torch.no_grad():
        x = sampler.denoise(x, range(first), rows)
    where = sampler.sigmas[first], sampler.sigmas[first + 1]
    mean, std = RULE(x, sampler.velocity_at(x, where[0], rows), *where)
    base, _ = RULE(x, sampler.base_velocity_at(x, where[0], rows), *where)
    drawn = [mean.detach() + std * torch.randn(3, 4, 8, 8, generator=generator) for _ in range(3)]
    with torch.no_grad():
        ends = [to - where[1] * sampler.velocity_at(to, where[1], rows) for to in drawn]
        rewards = torch.stack([reward(flow.decode(pipe, end), rows) for end in ends], 1)
    density = lambda to, mean: torch.distributions.Normal(mean, std).log_prob(to).mean((1, 2, 3))
    score = torch.stack([5.0 * (density(to, mean) - density(to, base)).exp().clamp(0.9, 1.1).log() for to in drawn], 1)
    lead = score[rows, rewards.argmax(1)] - score[rows, rewards.argmin(1)]
    whole = torch.autograd.grad(-torch.nn.functional.logsigmoid(lead).mean(), lora(pipe), allow_unused=True)
    whole = torch.cat([torch.zeros_like(p).flatten() if g is None else g.flatten() for g, p in zip(whole, lora(pipe))])
    assert (found - whole).norm() <= 1e-4 * whole.norm()
