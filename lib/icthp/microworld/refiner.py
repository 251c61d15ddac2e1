"""The microworld's refiner: its grammar completes a prompt, in the place of a language model."""

from collections.abc import Iterator

import torch

from icthp.microworld.grammar import captions, parse
from icthp.microworld.scenes import COLOURS, COUNTS, RELATIONS

CLASSES = (COLOURS, COUNTS, RELATIONS)  # words of one class each, for `data.wording.hard_negative`


def microworld_grammar(prompts: list[str], seed: int = 0) -> Iterator[str]:
    """The long caption of a scene that fits each prompt: what the prompt leaves open (material, scenery, light ...) is drawn at
    random and named. ValueError: a prompt outside the grammar."""
    yield from captions(parse(prompts, torch.Generator().manual_seed(seed)), "long")
