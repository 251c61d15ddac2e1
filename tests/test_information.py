"""Estimators of information against closed forms."""

import math

import numpy as np
import pytest
import torch

from icthp import information


def test_predicted_score_closed_forms():
    assert information.predicted_score(10.0, 0.0, 10.0) == 1.0
    assert information.predicted_score(10.0, 30.0, 10.0) == pytest.approx(math.sqrt(10 / 40))  # all of the prompt contained
    a, b = np.meshgrid(np.linspace(0.1, 10, 20), np.linspace(0, 50, 20))
    f = information.predicted_score(a, b, 10.0)
    assert (f > 0).all() and (f <= 1).all()


def test_the_score_falls_exactly_where_the_condition_says():
    """db > da (1 + 2 b / a), against finite differences of f."""
    rng = np.random.default_rng(0)
    a, b, da, db = rng.uniform(0.5, 20, 500), rng.uniform(0, 40, 500), rng.uniform(0, 1, 500), rng.uniform(0, 9, 500)
    change = information.predicted_score(a + 1e-7 * da, b + 1e-7 * db, 20) - information.predicted_score(a, b, 20)
    assert np.array_equal(change < 0, db > da * (1 + 2 * b / a))


WORLD = dict(described=3, contained=2, private=4, noise=0.5)


def test_linear_gaussian_closed_forms_against_the_determinants():
    """I(v;t), and I(v;latents) = a + b, from the exact covariances; the cosine from the exact second moments."""
    truth = information.linear_gaussian(**WORLD)
    per_latent = 0.5 * math.log2(1 + 1 / 0.25)
    assert truth["a"] == pytest.approx(2 * per_latent) and truth["b"] == pytest.approx(4 * per_latent)
    assert truth["cosine"] == pytest.approx(2 / math.sqrt(3 * 6 * 1.25))
    assert truth["cosine"] == pytest.approx(information.predicted_score(truth["a"], truth["b"], truth["t"]) / math.sqrt(1.25))


def test_linear_gaussian_simulation_lies_on_its_curve():
    v, t = information.sample_linear_gaussian(100_000, 3, 2, 4, torch.Generator().manual_seed(0))
    cosine = (v[:, :2] * t[:, :2]).sum(1).mean() / (v.square().sum(1).mean() * t.square().sum(1).mean()).sqrt()
    truth = information.linear_gaussian(**WORLD)
    assert cosine.item() == pytest.approx(truth["cosine"], abs=0.01)
    assert information.gaussian_information(v, t) == pytest.approx(truth["a"], abs=0.02)


@pytest.mark.parametrize("asked", [0.0, 0.3, 1.0])
def test_the_best_weight_of_a_latent_is_how_often_it_is_asked_for(asked):
    """Maximise, over the weights of a unit embedding, the mean inner product with prompts that always ask for the first two
    latents and for each of the others with probability `asked`: Lagrange gives weights proportional to those."""
    weights = torch.full((6,), 0.5, dtype=torch.float64, requires_grad=True)
    probability = torch.tensor([1.0, 1, asked, asked, asked, asked], dtype=torch.float64)
    optimizer = torch.optim.LBFGS([weights], max_iter=100, line_search_fn="strong_wolfe")
    loss = lambda: -(probability * weights).sum() / weights.norm()
    optimizer.step(lambda: (optimizer.zero_grad(), (value := loss()).backward(), value)[-1])
    best = weights.detach() / weights.detach()[0]
    assert torch.allclose(best, probability, atol=1e-4)
    cosine = best[:2].sum() / (best.square().sum() * 3 * 1.25).sqrt()
    assert cosine.item() == pytest.approx(information.linear_gaussian(3, 2, 4, asked)["cosine"], abs=1e-4)


def correlated(n, r, seed=0):
    x, noise = torch.randn(2, n, len(r), generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    r = torch.tensor(r, dtype=torch.float64)
    return x, r * x + (1 - r**2).sqrt() * noise, (-0.5 * torch.log2(1 - r**2)).sum().item()


def test_gaussian_information_closed_form():
    """A pair with correlation r shares -log2(1 - r^2) / 2 bits; independent pairs add."""
    x, y, truth = correlated(200_000, [0.6, 0.9])
    assert information.gaussian_information(x, y) == pytest.approx(truth, abs=0.01)
    with pytest.raises(ValueError, match="samples"):
        information.gaussian_information(x[:4], y[:4])


def test_gaussian_information_has_no_bias_in_small_samples():
    """60 samples of 2 x 10 dimensions; the plain plug-in is more than a bit too high there."""
    estimates = [information.gaussian_information(*correlated(60, [0.5] * 10, seed)[:2]) for seed in range(200)]
    truth = correlated(2, [0.5] * 10)[2]
    assert np.mean(estimates) == pytest.approx(truth, abs=4 * np.std(estimates) / math.sqrt(200))


@pytest.mark.slow
@pytest.mark.parametrize("d", [1, 3, 8])
@pytest.mark.parametrize("bits", [0.1, 1.0, 3.0])
def test_gaussian_and_ksg_closed_forms(d, bits):
    """n = 4000. Within 5 %, or within three standard errors where 5 % of 0.1 bit is less than the sampling error."""
    r, estimates = [math.sqrt(1 - 2 ** (-2 * bits / d))] * d, {"gaussian": [], "ksg": []}
    seeds = 3 if d == 8 else 6
    for seed in range(seeds):
        x, y, _ = correlated(4000, r, seed)
        estimates["gaussian"].append(information.gaussian_information(x, y))
        estimates["ksg"].append(information.ksg_information(x, y, surrogates=1, seed=seed).mean())
    for values in estimates.values():
        assert np.mean(values) == pytest.approx(bits, abs=max(0.05 * bits, 3 * max(np.std(values), 0.02) / math.sqrt(seeds)))
        assert np.std(values) < 0.06


def test_ksg_sees_what_a_gaussian_model_cannot():
    """y = x^2 has no correlation with x; one-to-one maps change nothing."""
    x, y, truth = correlated(4000, [0.6, 0.8])
    assert information.ksg_information(x.sinh(), y.sinh()).mean() == pytest.approx(truth, abs=0.08)
    square = x[:, :1] ** 2 + 0.1 * y[:, 1:]
    assert information.gaussian_information(x[:, :1], square) < 0.05 < 1 < information.ksg_information(x[:, :1], square).mean()


def test_infonce_is_a_bound_that_a_good_critic_nearly_reaches():
    """The optimal critic log p(y | x) / p(y) of a correlated pair, 512 candidates; a blind critic gives nothing."""
    x, y, truth = correlated(512 * 8, [0.9])
    r2 = 0.81
    critic = lambda a, b: -((b.T - 0.9 * a) ** 2) / (2 * (1 - r2)) + b.T**2 / 2
    parts = torch.cat([information.infonce_information(critic(a, b)) for a, b in zip(x.split(512), y.split(512))])
    assert truth - 0.1 < parts.mean() < truth + 0.05
    assert information.infonce_information(torch.zeros(8, 8)).tolist() == pytest.approx([0] * 8)
    assert information.infonce_information(100 * torch.eye(8)).mean().item() == pytest.approx(3)  # never above log2 n


def test_denoiser_information_closed_form():
    """Optimal denoisers of N(0, 1) and, given the text, of N(r y, 1 - r^2): the integral is the mutual information."""
    r2, sigmas = 0.81, torch.linspace(1e-4, 1 - 1e-4, 4001, dtype=torch.float64)
    error = lambda variance: variance / (variance * (1 - sigmas) ** 2 + sigmas**2)  # of the velocity: mmse of x0 over sigma^2
    found = information.denoiser_information(error(1.0)[None], error(1 - r2)[None], sigmas)
    assert found.item() == pytest.approx(-0.5 * math.log2(1 - r2), abs=1e-3)


def test_velocity_errors_of_the_optimal_denoiser():
    """On N(0, 1) data the best velocity is x (2 s - 1) / (s^2 + (1 - s)^2), with error 1 / (s^2 + (1 - s)^2) a dimension."""
    sigmas, draw = torch.tensor([0.1, 0.5, 0.9]), torch.Generator().manual_seed(0)
    energy = lambda s: s**2 + (1 - s) ** 2
    found = information.velocity_errors(lambda x, s: x * (2 * s - 1) / energy(s), torch.randn(500, 3, 8, generator=draw), sigmas, draw)
    assert found.shape == (500, 3)
    torch.testing.assert_close(found.mean(0), 24 / energy(sigmas), rtol=0.03, atol=0)
