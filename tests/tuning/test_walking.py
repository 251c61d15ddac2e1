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


@pytest.mark.parametrize("seed, among, window, over", [(0, None, 0, "batch"), (0, None, 1, "prompt"), (5, None, 1, "batch"),
                                                       (0, None, 2, "batch"), (1, (1,), 0, "batch"), (2, (1, 0), 1, "prompt")])  # fmt: skip
def test_a_walk_is_the_score_function_of_its_steps(pipe, prompt, seed, among, window, over):
    """The gradient of -A log p, by hand, over the transitions that the rollout drew: all, those named, or those of a window that was
    drawn."""
    loss = partial(optimisers.flow_grpo, kl=0.0, over=over)
    result, found = run(pipe, prompt, loss=loss, n=2, seed=seed, random_steps=among, window=window)
    generators = [torch.Generator().manual_seed(seed + i) for i in range(3)]
    draw = lambda: torch.cat([torch.randn(1, 4, 8, 8, generator=g) for g in generators])
    x, rows = torch.cat([draw(), draw()]), torch.arange(3).repeat(2)
    random_steps = sorted(among or range(STEPS - 1))
    if window:
        first = int(torch.randint(0, len(random_steps) - window + 1, (), generator=generators[0]))
        random_steps = random_steps[first : first + window]
    sampler = flow.Sampler(pipe, *prompt, STEPS)
    steps = {}
    with torch.no_grad():
        for i in range(STEPS):
            if i not in random_steps:
                x = sampler.denoise(x, range(i, i + 1), rows)
                continue
            mean, std = RULE(x, sampler.velocity_at(x, sampler.sigmas[i], rows), sampler.sigmas[i], sampler.sigmas[i + 1])
            to = mean + std * torch.cat([draw(), draw()])
            steps[i] = x, to, std
            x = to
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
    with pytest.raises(ValueError, match="0 or one of 1 to 1, the steps with noise, not 2"):
        make(generator=torch.Generator(), random_steps=[1], window=2)


@pytest.mark.parametrize("random_steps", [[], [-1], [0, STEPS - 1]])
def test_steps_that_cannot_be_random(pipe, prompt, random_steps):
    for step, options in ((walking.walk_step, {"loss": optimisers.pref_grpo}), (walking.candidates_step, {"beta": 5.0})):
        with pytest.raises(ValueError, match=rf"some of 0 to {STEPS - 2}, the steps that may have noise, not \{random_steps}"):
            run(pipe, prompt, step, random_steps=random_steps, **options)


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


@pytest.mark.parametrize("steps, random", [(2, None), (3, 1), (3, 0)])
def test_one_candidate_step_by_hand(pipe, prompt, steps, random):
    """The candidates of the only random step, their jumps, best over worst; the other steps are Euler's."""
    generator = torch.Generator().manual_seed(0)
    for p in lora(pipe):
        p.grad = None
    walking.candidates_step(pipe, *prompt, reward, steps=steps, generator=generator, rule=RULE, beta=5.0, n=3,
                            random_steps=random if random is None else [random])  # fmt: skip
    found = torch.cat([p.grad.flatten() for p in lora(pipe)])
    generator = torch.Generator().manual_seed(0)
    x, rows = torch.randn(3, 4, 8, 8, generator=generator), torch.arange(3)
    sampler = flow.Sampler(pipe, *prompt, steps)
    with torch.no_grad():
        x = sampler.denoise(x, range(random or 0), rows)
    where = sampler.sigmas[random or 0], sampler.sigmas[(random or 0) + 1]
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
