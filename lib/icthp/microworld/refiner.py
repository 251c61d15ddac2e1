"""microworld.refiner."""

from collections.abc import Iterator

import torch

from icthp.microworld.grammar import captions, parse
from icthp.microworld.scenes import COLOURS, COUNTS, RELATIONS


def microworld_grammar(prompts: list[str], seed: int = 0) -> Iterator[str]:
    """What a prompt of the microworld leaves open (material, scenery, light ...) is drawn and said."""
    yield from captions(parse(prompts, torch.Generator().manual_seed(seed)), "long")


CLASSES = (COLOURS, COUNTS, RELATIONS)
