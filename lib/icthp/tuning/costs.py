"""What tuning costs, counted: evaluations of the transformer, rewards, seconds."""

import time
from collections.abc import Callable

import torch

from icthp.tuning.lora import unwrap
from icthp.tuning.rewards import RewardStep


class Costs:
    """Counts while `counted` runs: `forwards`, rows of the transformer without a graph; `graphs`, rows with one; `rewards` and, of these,
    `reward_gradients`; `seconds` of the processor. `equivalents`: forwards + 3 graphs, for a backward pass costs twice a forward one."""

    def __init__(self):
        self.forwards = self.graphs = self.rewards = self.reward_gradients = 0
        self.seconds = 0.0

    @property
    def equivalents(self) -> int:
        return self.forwards + 3 * self.graphs

    def as_dict(self) -> dict[str, float]:
        return vars(self) | {"equivalents": self.equivalents}

    def _count_rows(self, module, args, kwargs) -> None:
        rows = len(args[0] if args else kwargs["hidden_states"])
        if torch.is_grad_enabled():
            self.graphs += rows
        else:
            self.forwards += rows


def counted(costs: Costs, update: Callable[..., RewardStep], pipe, prompt_embeds, pooled, reward, **options) -> RewardStep:
    """update(...), counted in `costs`: partial(counted, costs, update) is an update as well."""

    def counted_reward(pixels, rows):
        costs.rewards += len(rows)
        costs.reward_gradients += len(rows) * pixels.requires_grad
        return reward(pixels, rows)

    hook = unwrap(pipe.transformer).register_forward_pre_hook(costs._count_rows, with_kwargs=True)
    start = time.process_time()
    try:
        return update(pipe, prompt_embeds, pooled, counted_reward, **options)
    finally:
        costs.seconds += time.process_time() - start
        hook.remove()
