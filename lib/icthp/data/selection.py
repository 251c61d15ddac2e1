"""Which pictures of a table of triplets are worth a look: the first ones of an order, each of another prompt."""

from collections.abc import Iterable, Sequence

from icthp.data.prompts import same_prompt


def of_different_prompts(order: Iterable[int], prompts: Sequence[str], count: int) -> list[int]:
    """The first `count` pictures of an order, at most one of each prompt (`same_prompt`); fewer where there are fewer prompts.

    order: numbers of pictures, 3 k + i for I(i + 1) of row k, as `scores.flatten().argsort()` gives them for scores (n, 3); prompts: of the
    n rows."""
    first = {}
    for number in map(int, order):
        first.setdefault(same_prompt(prompts[number // 3]), number)
        if len(first) == count:
            break
    return list(first.values())[:count]
