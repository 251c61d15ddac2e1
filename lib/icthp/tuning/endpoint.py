"""The end of a trajectory as a function of a few of its velocities: what ReFL, DRTune, DRaFT-1, FlowBP-Sparse and SRPO have in common."""

from collections.abc import Callable
from typing import NamedTuple

import torch
from torch import Tensor


def endpoint(x0: Tensor, v: Tensor, coefficient: Tensor) -> Tensor:
    """x0 itself, with the gradient of x0 + sum_i c_i v_i: a trajectory whose active steps see latents without a graph.

    x0 (k, c, h, w): where it ends; v (m, k, c, h, w): the velocities of the active steps, with their graph; coefficient (m,): c, how far
    the end moves with each, a step's next level less its own, or minus the level for a jump from there to the end."""
    moved = (coefficient.view(-1, *[1] * x0.ndim) * (v - v.detach())).sum(0)
    return x0.detach() + moved


def direct_align(x: Tensor, v: Tensor, noise: Tensor, sigma: float, to: float) -> Tensor:
    """SRPO's picture without noise (arXiv 2509.06942; Tencent-Hunyuan/SRPO@fastvideo/SRPO.py): a step from level sigma to `to`, less the
    noise, which is known, (x + (to - sigma) v - to noise) / (1 - to). x = (1 - sigma) x0 + sigma noise. Exact for the true velocity,
    downwards and upwards, with slopes in v of opposite signs."""
    return (x + (to - sigma) * v - to * noise) / (1 - to)


# ---- which steps are active -------------------------------------------------------------------------------------


class Path(NamedTuple):
    """A trajectory of `stop` of a sampler's steps and, where that is not all, a jump from there to the end; `active`: the transitions with
    a graph (`stop` is the jump), `factor`: what their gradient is multiplied by."""

    stop: int
    active: tuple[int, ...]
    factor: float = 1.0


Choice = Callable[[list[float], torch.Generator], Path]  # the sampler's levels, 1 to 0, and random numbers -> the path of this batch


def draw_int(low: int, high: int, generator: torch.Generator) -> int:
    """One of low .. high - 1."""
    return int(torch.randint(low, high, (), generator=generator, device=generator.device))


def last_step(sigmas: list[float], generator: torch.Generator) -> Path:
    """DRaFT-1 (arXiv 2309.17400): all steps, a graph of the last one. Needs: the reward's gradient.
    Cost: T F + 1 G."""
    steps = len(sigmas) - 1
    return Path(steps, (steps - 1,))


def one_step(sigmas: list[float], generator: torch.Generator, *, i: int) -> Path:
    """All steps, a graph of step i alone: where in a trajectory does the reward's gradient do what?
    Needs: the reward's gradient. Cost: T F + 1 G."""
    return Path(len(sigmas) - 1, (i,))


def refl(sigmas: list[float], generator: torch.Generator, *, first: float = 0.5) -> Path:
    """ReFL (arXiv 2304.05977; THUDM/ImageReward): a random stop in the later part, from `first` of the steps on, and a jump with a graph
    from there. Needs: the reward's gradient. Cost: at most T F + 1 G."""
    steps = len(sigmas) - 1
    stop = draw_int(min(int(first * steps), steps - 1), steps, generator)
    return Path(stop, (stop,))


def drtune(sigmas: list[float], generator: torch.Generator, *, k: int = 2, latest: float = 0.4) -> Path:
    """DRTune (arXiv 2405.00760, as RuoyuWang-2077/FlowBP has it): every input of the network without a graph, k equally spaced steps with
    one, a random offset, a random early stop within the `latest` part of the steps. Needs: the reward's
    gradient. Cost: at most T F + k G."""
    steps = len(sigmas) - 1
    stop = draw_int(steps - max(1, round(latest * steps)), steps, generator)
    every = max(1, (stop + 1) // k)
    return Path(stop, tuple(range(draw_int(0, every, generator), stop + 1, every))[:k])


def sparse(sigmas: list[float], generator: torch.Generator, *, k: int = 2, bias: float = 1.0) -> Path:
    """FlowBP-Sparse (arXiv 2606.11075; RuoyuWang-2077/FlowBP@flowbp/trainers/sd35/flowbp_sparse.py): k different steps, the i-th drawn with
    a probability as (i + 1)^bias, and half of what the others would have added: the factor is 1 + (all / active - 1) / 2, of the steps'
    lengths. Needs: the reward's gradient. Cost: T F + k G."""
    lengths = -torch.tensor(sigmas).diff()
    weight = torch.arange(1, len(sigmas), dtype=torch.float64, device=generator.device) ** bias
    active = sorted(torch.multinomial(weight, min(k, len(lengths)), generator=generator).tolist())
    return Path(len(lengths), tuple(active), 1 + 0.5 * (lengths.sum() / lengths[active].sum() - 1).item())
