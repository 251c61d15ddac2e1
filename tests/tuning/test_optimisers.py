"""Each loss of `optimisers` against its formula, written out a picture at a time; what all have in common at the start; gradients."""

import ast
import inspect
import math
from functools import partial
from pathlib import Path

import pytest
import torch
import torch.nn.functional as F
from torch.autograd import grad

from icthp.tuning import optimisers
from icthp.tuning.fitting import Fit
from icthp.tuning.stochastic import step_logp
from icthp.tuning.walking import Transition

B, N = 3, 4


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def fit(velocity=None, base=None, rewards=None):
    velocity = random(B, N, 2, 3, 3) if velocity is None else velocity
    base = random(B, N, 2, 3, 3, seed=1) if base is None else base
    rewards = random(B, N, seed=2) if rewards is None else rewards
    sigma = torch.rand(B, N, generator=torch.Generator().manual_seed(3), dtype=torch.float64)
    return Fit(rewards, sigma, velocity, random(B, N, 2, 3, 3, seed=4), lambda: base)


def errors(f):
    """(b, n) twice, by hand: of the velocity, and how much more than the untuned one's."""
    error = torch.stack([torch.stack([(f.velocity[i, j] - f.target[i, j]).pow(2).mean() for j in range(N)]) for i in range(B)])
    return error, error - torch.stack([torch.stack([(f.base[i, j] - f.target[i, j]).pow(2).mean() for j in range(N)]) for i in range(B)])


def best_and_worst(f):
    return [(i, max(range(N), key=lambda j: f.rewards[i, j]), min(range(N), key=lambda j: f.rewards[i, j])) for i in range(B)]


def of_pairs(formula):
    """The mean over prompts of formula(D_w, D_l, e_w, e_l, r_w - r_l)."""

    def loss(f):
        error, gain = errors(f)
        rows = [(gain[i, w], gain[i, x], error[i, w], error[i, x], f.rewards[i, w] - f.rewards[i, x]) for i, w, x in best_and_worst(f)]
        return sum(formula(*row) for row in rows) / B

    return loss


def argument(better, worse, beta=3.0):
    return -beta / 2 * (better - worse)


def mapo(f):
    psi = lambda e: 0.5 * e / math.expm1(0.5 * e)
    total = 0
    for i, w, x in best_and_worst(f):
        better, worse = ((errors(f)[0][i, j] * (1 - f.sigma[i, j]) ** 2).item() for j in (w, x))
        total += better - 0.1 * F.logsigmoid(torch.tensor(1000 * (psi(better) - psi(worse)))).item()
    return total / B


def rank_dpo(f):
    _, gain = errors(f)
    total = 0
    for i in range(B):
        rank = {j: 1 + sorted(range(N), key=lambda j: gain[i, j]).index(j) for j in range(N)}  # a small gain is a high score
        worth = [2 ** torch.sigmoid(f.rewards[i, j]).item() - 1 for j in range(N)]
        for j in range(N):
            for k in range(N):
                if f.rewards[i, j] > f.rewards[i, k]:
                    weight = (worth[j] - worth[k]) * abs(1 / math.log(1 + rank[j]) - 1 / math.log(1 + rank[k]))
                    total -= weight * F.logsigmoid(-3.0 * (gain[i, j] - gain[i, k]))
    return total / B


def kto(f):
    _, gain = errors(f)
    score = -3.0 * gain
    z = max(0, score.mean().item())
    label = lambda i, j: 1 if f.rewards[i, j] > f.rewards[i].mean() else -1
    return sum(1 - torch.sigmoid(label(i, j) * (score[i, j] - z)) for i in range(B) for j in range(N)) / (B * N)


def crd(f):
    _, gain = errors(f)
    rows = [(i, j, k) for i in range(B) for j in range(N) for k in range(N) if f.rewards[i, j] > f.rewards[i, k]]
    return sum((-3.0 * (gain[i, j] - gain[i, k]) - (f.rewards[i, j] - f.rewards[i, k])) ** 2 for i, j, k in rows) / len(rows)


def advantage(f):
    return ((f.rewards - f.rewards.mean(1, keepdim=True)) / (f.rewards.std() + 1e-4)).clamp(-5, 5)


def awm(f):
    error, _ = errors(f)
    phi = 4 * ((error + 1e-10) ** 0.25 - 1e-10**0.25)
    return (advantage(f) / 5 * f.sigma * phi).mean() + 0.001 * (f.velocity - f.base).pow(2).mean()


def dgpo(f):
    error, gain = errors(f)
    saturation = torch.sigmoid(3.0 * (advantage(f) * gain).mean(1)).detach()
    return (saturation[:, None] * advantage(f) * error).mean()


def nft(f):
    apart = f.sigma[:, :, None, None, None] * (f.velocity - f.target)
    distance = apart.pow(2).mean((2, 3, 4)) / apart.abs().mean((2, 3, 4))
    return 5 * distance.mean() + 1e-4 * (f.velocity - f.base).pow(2).mean()  # in value free of r


FITS = {
    "dpo": (partial(optimisers.dpo, beta=3.0), of_pairs(lambda w, x, *_: -F.logsigmoid(argument(w, x)))),
    "ipo": (partial(optimisers.ipo, beta=3.0), of_pairs(lambda w, x, *_: (argument(w, x) - 0.5) ** 2)),
    "hinge_dpo": (partial(optimisers.hinge_dpo, beta=3.0), of_pairs(lambda w, x, *_: (1 - argument(w, x)).clamp(min=0))),
    "dmpo": (partial(optimisers.dmpo, beta=3.0), of_pairs(lambda w, x, *_: torch.distributions.kl_divergence(
        torch.distributions.Bernoulli(logits=argument(w, x)), torch.distributions.Bernoulli(torch.tensor(0.99).double())))),
    "smpo": (partial(optimisers.smpo, beta=3.0), of_pairs(
        lambda w, x, ew, el, gap: -F.logsigmoid(argument(w, x) * 10 * (2 * torch.sigmoid(gap) - 1)))),
    "sdpo": (partial(optimisers.sdpo, beta=3.0), of_pairs(lambda w, x, *_: -F.logsigmoid(argument(w, x)))),  # in value DPO's
    "npo": (partial(optimisers.npo, beta=3.0), of_pairs(lambda w, x, *_: -F.logsigmoid(argument(x, w)))),
    "pso": (partial(optimisers.pso, beta=3.0), of_pairs(lambda w, x, ew, el, gap: (1 - 3.0 * (el - ew)).clamp(min=0))),
    "mapo": (optimisers.mapo, mapo),
    "rank_dpo": (partial(optimisers.rank_dpo, beta=3.0), rank_dpo),
    "kto": (partial(optimisers.kto, beta=3.0), kto),
    "crd": (partial(optimisers.crd, beta=3.0), crd),
    "best_of_n": (optimisers.best_of_n, of_pairs(lambda w, x, ew, *_: ew)),
    "rwr": (partial(optimisers.rwr, temperature=0.5), lambda f: (errors(f)[0] * (2 * f.rewards).softmax(1)).sum(1).mean()),
    "awm": (optimisers.awm, awm),
    "dgpo": (partial(optimisers.dgpo, beta=3.0), dgpo),
    "nft": (optimisers.nft, nft),
}  # fmt: skip


@pytest.mark.parametrize("name", FITS)
def test_a_fits_loss_is_its_formula(name):
    loss, formula = FITS[name]
    assert loss(fit()).item() == pytest.approx(float(formula(fit())), rel=1e-6)


def transition(mean=None, rewards=None):
    mean = random(B, N, 2, 3, 3) / 5 if mean is None else mean
    rewards = random(B, N, seed=2) if rewards is None else rewards
    to, base = random(B, N, 2, 3, 3, seed=3) / 5, random(B, N, 2, 3, 3, seed=4) / 5
    return Transition(rewards, to, mean, mean.detach() + 0.02, 0.4, lambda: base)


def grpo(t, rewards=None, centre=0.0, scale=1.0, kl=0.0):
    rewards = t.rewards if rewards is None else rewards
    a = ((rewards - rewards.mean(1, keepdim=True)) / (rewards.std() + 1e-4)).clamp(-5, 5)
    ratio = (scale * (t.logp - t.old_logp + centre)).exp()
    drift = kl * ((t.mean - t.base).pow(2).mean((2, 3, 4)) / (2 * t.std**2)).mean()
    return -torch.minimum(a * ratio, a * ratio.clamp(1 - 1e-4, 1 + 1e-4)).mean() + drift


def rates(t):
    beats = [[[1.0 if a > b else 0.0 for b in row] for a in row] for row in t.rewards.tolist()]
    return torch.tensor(beats).double().sum(2) / (N - 1)


def pso_online(t):
    clipped = (t.logp - t.base_logp).exp().clamp(0.9, 1.1).log()
    rows = [(i, t.rewards[i].argmax(), t.rewards[i].argmin()) for i in range(B)]
    return sum(-F.logsigmoid(50 * (clipped[i, w] - clipped[i, x])) for i, w, x in rows) / B


STEPS = {
    "flow_grpo": (optimisers.flow_grpo, lambda t: grpo(t, kl=0.04)),
    "pref_grpo": (optimisers.pref_grpo, lambda t: grpo(t, rates(t))),
    "grpo_guard": (optimisers.grpo_guard, lambda t: grpo(t, centre=(t.mean - t.old).pow(2).mean((2, 3, 4)) / (2 * t.std**2), scale=t.std)),
    "pso_online": (optimisers.pso_online, pso_online),
}


@pytest.mark.parametrize("name", STEPS)
def test_a_steps_loss_is_its_formula(name):
    loss, formula = STEPS[name]
    assert loss(transition()).item() == pytest.approx(float(formula(transition())), rel=1e-6)


def test_a_steps_densities():
    t = transition()
    assert torch.equal(t.logp, step_logp(t.to, t.mean, t.std)) and t.logp.shape == (B, N)
    assert torch.equal(t.base_logp, step_logp(t.to, t.base, t.std)) and torch.equal(t.old_logp, step_logp(t.to, t.old, t.std))


# ---- what they have in common -----------------------------------------------------------------------------------


def start(name):
    """The gradient of a loss with respect to each picture's error, where the generator is still the untuned one."""
    velocity = random(B, N, 2, 3, 3).requires_grad_()
    f = fit(velocity, velocity.detach())
    found = grad(FITS[name][0](f), velocity)[0]
    of_error = 2 * (velocity - f.target).detach() / velocity[0, 0].numel()
    slope = (found * of_error).sum((2, 3, 4)) / of_error.square().sum((2, 3, 4))
    assert torch.allclose(found, slope[:, :, None, None, None] * of_error, atol=1e-8)  # nothing but a_i grad e_i
    return slope, f


def of_best_and_worst(f, weight):
    a = torch.zeros(B, N, dtype=torch.float64)
    for i, w, x in best_and_worst(f):
        a[i, w], a[i, x] = weight / B, -weight / B
    return a


@pytest.mark.parametrize("name, weight", [("dpo", 3 / 4), ("npo", -3 / 4), ("hinge_dpo", 3 / 2), ("ipo", 3 / 2)])
def test_preferences_begin_as_plus_and_minus(name, weight):
    slope, f = start(name)
    assert torch.allclose(slope, of_best_and_worst(f, weight), atol=1e-8)


def test_kto_begins_as_a_label_and_dgpo_as_half_an_advantage():
    slope, f = start("kto")
    label = (f.rewards - f.rewards.mean(1, keepdim=True)).sign()
    assert torch.allclose(slope, label * 3 / 4 / (B * N), atol=1e-8)
    slope, f = start("dgpo")
    assert torch.allclose(slope, advantage(f) / 2 / (B * N), atol=1e-8)


def test_awm_begins_as_an_advantage_and_nft_as_2_r_minus_1():
    """Up to the weight of the level and the slope of their distance."""
    slope, f = start("awm")
    error, _ = errors(f)
    assert torch.allclose(slope, advantage(f) / 5 * f.sigma * (error + 1e-10) ** -0.75 / (B * N), atol=1e-8)
    slope, f = start("nft")
    size = (f.velocity - f.target).abs().mean((2, 3, 4)).detach()
    assert torch.allclose(slope, 5 * (2 * advantage(f) / 10) * f.sigma / size / (B * N), atol=1e-8)


def test_two_of_rank_dpo_are_dpo_times_a_constant():
    """The same gradient direction for n = 2, whatever the rewards' gap."""
    velocity, base, rewards = random(1, 2, 2, 3, 3).requires_grad_(), random(1, 2, 2, 3, 3, seed=1), torch.tensor([[0.3, -0.9]]).double()
    make = lambda: Fit(rewards, torch.full((1, 2), 0.5).double(), velocity, random(1, 2, 2, 3, 3, seed=4), lambda: base)
    rank, dpo = optimisers.rank_dpo(make(), beta=3.0), optimisers.dpo(make(), beta=6.0)
    worth = 2 ** torch.sigmoid(rewards[0]) - 1
    constant = (worth[0] - worth[1]) * (1 / math.log(2) - 1 / math.log(3))
    assert torch.allclose(rank, constant * dpo) and torch.allclose(grad(rank, velocity)[0], constant * grad(dpo, velocity)[0])


def test_safe_dpo_scales_only_the_rejected_gradient():
    """Value of DPO; against it, the chosen picture's gradient is the same and the rejected one's a share of it."""
    velocity = random(B, N, 2, 3, 3).requires_grad_()
    target = fit().target
    make = lambda: fit(velocity, random(B, N, 2, 3, 3, seed=1))
    plain, safe = grad(FITS["dpo"][0](make()), velocity)[0], grad(FITS["sdpo"][0](make()), velocity)[0]
    shares = []
    for i, w, x in best_and_worst(make()):
        assert torch.allclose(plain[i, w], safe[i, w])
        share = ((safe[i, x] * plain[i, x]).sum() / plain[i, x].square().sum()).item()
        assert torch.allclose(safe[i, x], share * plain[i, x]) and 0 <= share <= 1
        residuals = [(velocity[i, j] - target[i, j]).detach().flatten() for j in (w, x)]
        inner = residuals[0] @ residuals[1]
        shares.append(min(1.0, (0.1 * residuals[0] @ residuals[0] / inner).item()) if inner > 0 else 1.0)
        assert share == pytest.approx(shares[-1], rel=1e-5)


@pytest.mark.parametrize("name", [*FITS, *STEPS])
def test_ties_and_gradients(name):
    """Equal rewards leave no preference; a float64 gradient is the difference quotient where nothing is stopped on the way."""
    stopped = {"sdpo", "nft", "dgpo", "kto"}  # their gradients are in closed forms above, kto's in test_preferences
    make = fit if name in FITS else transition
    loss = (FITS | STEPS)[name][0]
    x = make().velocity.clone() if name in FITS else make().mean.clone()
    if name in ("pref_grpo", "flow_grpo", "grpo_guard"):  # inside the clipping, where there is a gradient at all
        loss = partial(loss, clip=0.9)
    if name not in stopped:
        fixed_old = transition(x).old
        of = (
            (lambda v: loss(fit(v)))
            if name in FITS
            else (lambda m: loss(Transition(make().rewards, make().to, m, fixed_old, 0.4, make().base_of)))
        )
        assert torch.autograd.gradcheck(of, x.requires_grad_(), nondet_tol=1e-9, atol=1e-4, rtol=1e-3)
    tied = torch.zeros(B, N, dtype=torch.float64)
    if name not in ("best_of_n", "rwr", "awm", "nft", "flow_grpo", "mapo"):  # which fit, or are anchored, all the same
        y = x.detach().clone().requires_grad_()
        value = loss(make(y, rewards=tied))
        assert not value.requires_grad or grad(value, y, allow_unused=True)[0].abs().max() < 1e-9


def test_each_says_its_source_its_needs_and_its_cost_in_few_lines():
    tree = ast.parse(Path(optimisers.__file__).read_text(encoding="utf-8"))
    lengths = []
    for node in (node for node in tree.body if isinstance(node, ast.FunctionDef)):
        text = inspect.getdoc(getattr(optimisers, node.name))
        assert "Needs: " in text and "Cost: " in text and ("arXiv" in text or "/" in text), node.name
        lengths.append(node.end_lineno - node.body[0].end_lineno + len(ast.unparse(node.args).splitlines()) + 1)
    assert sorted(lengths)[len(lengths) // 2] <= 15 and {*FITS, *STEPS} == {n.name for n in tree.body if isinstance(n, ast.FunctionDef)}
