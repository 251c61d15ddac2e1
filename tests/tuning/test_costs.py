"""What a step costs, counted; what a negative generator draws."""

from functools import partial

import pytest
import torch
from test_draft import STEPS, lora, reward

from icthp.tuning import draft, endpoint, fitting, jumping, optimisers, sampling, stochastic, walking
from icthp.tuning.costs import Costs, counted
from icthp.tuning.identity import identity_of
from icthp.tuning.negative import negative_branch

RULE = partial(stochastic.coefficients_preserving, eta=0.6)
B = 3  # prompts of a step, by which all below is divided
EXPECTED = {  # forwards, graphs, rewards, of these with a gradient, a prompt
    "draft_1": (partial(draft.draft_step, k=1), STEPS - 1, 1, 1, 1),
    "draft_k": (partial(draft.draft_step, k=STEPS), 0, STEPS, 1, 1),
    "anchored": (partial(draft.draft_step, k=STEPS, anchor=0.1), STEPS, STEPS, 1, 1),
    "jump": (partial(jumping.jump_step, path_of=endpoint.last_step), STEPS, 1, 1, 1),
    "align": (jumping.align_step, STEPS + 2, 2, 2, 2),
    "pull": (partial(jumping.pull_step, strength=1.0), 2 * STEPS, STEPS, 1, 1),
    "dpo": (partial(fitting.fit_step, loss=partial(optimisers.dpo, beta=1.0), n=2), 2 * STEPS + 2, 2, 2, 0),
    "pso": (partial(fitting.fit_step, loss=partial(optimisers.pso, beta=1.0), n=4, levels=2), 4 * STEPS, 8, 4, 0),
    "grpo": (partial(walking.walk_step, loss=partial(optimisers.flow_grpo, kl=0.0), rule=RULE, n=2), 2 * STEPS, 2 * (STEPS - 1), 2, 0),
}


@pytest.mark.parametrize("name", EXPECTED)
def test_a_step_is_counted(pipe, prompt, name):
    update, *expected = EXPECTED[name]
    costs = Costs()
    partial(counted, costs, update)(pipe, *prompt, reward, steps=STEPS, generator=torch.Generator().manual_seed(0))
    assert [costs.forwards / B, costs.graphs / B, costs.rewards / B, costs.reward_gradients / B] == expected
    assert costs.equivalents == costs.forwards + 3 * costs.graphs and costs.seconds > 0
    assert not pipe.transformer._forward_pre_hooks


def test_counting_does_not_tell_runs_apart():
    """A run that goes on after a kill begins to count anew."""
    used = Costs()
    used.forwards = 7
    assert identity_of(partial(counted, used, draft.draft_step)) == identity_of(partial(counted, Costs(), draft.draft_step))


def test_away_from_a_negative_generator(pipe, prompt):
    """At 1 the untuned generator's pictures; else v' + g (v - v'); the pipeline itself draws so; afterwards all is as before."""
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    velocity = lambda: pipe.transformer(x, *prompt, torch.full((3,), 500.0), return_dict=False)[0]
    with torch.no_grad():
        tuned = velocity()
        with negative_branch(pipe.transformer, 1.0):
            base = velocity()
        with negative_branch(pipe.transformer, 3.0):
            away = velocity()
            pictures = sampling.generate(pipe, ["a red circle"], steps=2)
        assert torch.equal(velocity(), tuned) and not torch.allclose(base, tuned)
    assert torch.allclose(away, tuned + 3 * (base - tuned), atol=1e-5)
    assert pictures.shape[0] == 1 and not torch.allclose(pictures, sampling.generate(pipe, ["a red circle"], steps=2))
    assert all(p.requires_grad for p in lora(pipe))
