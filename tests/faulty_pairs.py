"""Pairs of the microworld without a generator: renders with planted faults, voted on by their true utility."""

import datasets
import torch

from icthp import microworld


def faulty_pairs(scenes: microworld.Scenes) -> datasets.Dataset:
    generator = torch.Generator().manual_seed(0)
    drawn = [microworld.plant_faults(scenes, generator) for _ in range(2)]
    pixels = tuple(part for part, _ in drawn)
    return microworld.voted_pairs(scenes, pixels, tuple(microworld.utility(truth) for _, truth in drawn), generator)
