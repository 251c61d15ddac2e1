"""The end of a trajectory as a function of single velocities, SRPO's alignment, and the paths of the methods."""

import math

import pytest
import torch
from torch.autograd import grad, gradcheck

from icthp.tuning.endpoint import direct_align, drtune, endpoint, last_step, one_step, refl, sparse

SIGMAS = [1.0, 0.9, 0.7, 0.4, 0.0]


def random(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def test_the_value_is_the_end_and_the_gradient_the_steps():
    x0, v = random(2, 3, 4, 4), random(2, 2, 3, 4, 4, seed=1).requires_grad_()
    coefficient = torch.tensor([-0.3, -0.7], dtype=torch.float64)
    end = endpoint(x0, v, coefficient)
    assert torch.equal(end.detach(), x0)
    weight = random(2, 3, 4, 4, seed=2)
    assert torch.allclose(grad((end * weight).sum(), v)[0], coefficient.view(2, 1, 1, 1, 1) * weight)


def test_one_jump_has_the_gradient_of_x_minus_sigma_v():
    x, v, weight = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1).requires_grad_(), random(2, 3, 4, 4, seed=2)
    jump = x - 0.6 * v
    ours = endpoint(jump.detach(), v[None], torch.tensor([-0.6], dtype=torch.float64))
    assert torch.equal(ours.detach(), jump.detach())
    assert torch.allclose(grad((ours.square() * weight).sum(), v)[0], grad((jump.square() * weight).sum(), v)[0])


def test_direct_align_is_exact_both_ways_with_opposite_slopes():
    x0, noise = random(2, 3, 4, 4), random(2, 3, 4, 4, seed=1)
    slopes = []
    for sigma, to in ((0.8, 0.3), (0.3, 0.8)):
        v = (noise - x0).requires_grad_()
        end = direct_align((1 - sigma) * x0 + sigma * noise, v, noise, sigma, to)
        assert torch.allclose(end, x0)
        slope = grad(end.sum(), v)[0]
        assert torch.allclose(slope, torch.full_like(slope, (to - sigma) / (1 - to)))
        slopes.append(slope.mean())
    assert slopes[0] < 0 < slopes[1]


def test_the_alignments_gradient_in_float64():
    x, v, noise = (random(1, 2, 2, 2, seed=s).requires_grad_() for s in range(3))
    assert gradcheck(lambda x, v, noise: direct_align(x, v, noise, 0.7, 0.2), (x, v, noise))


def paths(choose, count=300):
    generator = torch.Generator().manual_seed(0)
    return [choose(SIGMAS, generator) for _ in range(count)]


def test_paths_stop_and_are_active_where_their_method_says():
    assert set(paths(last_step)) == {(4, (3,), 1.0)} and set(paths(lambda *at: one_step(*at, i=1))) == {(4, (1,), 1.0)}
    assert {(p.stop, p.active) for p in paths(refl)} == {(2, (2,)), (3, (3,))}
    for path in paths(drtune):
        assert path.stop in (2, 3) and len(path.active) == 2 and path.active[-1] <= path.stop
        assert path.active[1] - path.active[0] == (path.stop + 1) // 2
    assert len({p.active for p in paths(drtune)}) > 2


def test_sparse_prefers_late_steps_and_makes_up_for_half_of_the_others():
    found = paths(sparse)
    counts = [sum(i in path.active for path in found) for i in range(4)]
    assert counts == sorted(counts) and counts[3] > 1.5 * counts[0]
    lengths = [0.1, 0.2, 0.3, 0.4]
    for path in found:
        assert path.stop == 4 and len(path.active) == 2
        assert path.factor == pytest.approx(1 + 0.5 * (1 / sum(lengths[i] for i in path.active) - 1))
    assert math.isclose(sparse(SIGMAS, torch.Generator().manual_seed(0), k=9).factor, 1)
