"""Weak generators and simulated annotators: the pairs I1 < I2 of the microworld, its Pick-a-Pic."""

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor

from icthp.data.pairs import PAIRS
from icthp.images import encode
from icthp.microworld.grammar import captions
from icthp.microworld.renderer import render
from icthp.microworld.scenes import Scenes

UTILITY = {"alignment": 3.0, "richness": 1.0, "artefact": -1.5}  # documented taste of the simulated annotators
BT_SCALE = 2.1  # Bradley-Terry: two annotators agree on about 70 to 75 % of pairs, as people do
SOURCE = "legacy generator of the microworld"  # the value that data/pairs holds in source_1 and source_2


# ---- weak generators --------------------------------------------------------------------------------------------


def weak_generator(scenes: Scenes, generator: torch.Generator, size: int = 64) -> tuple[Tensor, dict[str, Tensor]]:
    """What a weak generator makes of the prompts: attributes go wrong, richness is low, blur and blocks appear.

    Returns pixels (b, 3, size, size) in [0, 1] and the truth, (b,) float32 each: alignment, the share of the prompt's shapes and
    colours that are drawn; richness, at most 5/8; artefact, the strength of blur and blocks in [0, 1].
    """
    uniform = lambda: torch.rand(len(scenes), generator=generator)
    s = scenes.latents
    wrong = {name: uniform() < 0.18 for name in ("shape_a", "colour_a", "shape_b", "colour_b")}
    attributes = {name: torch.where(w, _another(s[name], uniform()), s[name]) for name, w in wrong.items()}
    drawn = scenes.replace(**attributes).at(uniform() * 0.6)
    artefact = uniform() ** 2
    pixels = _degrade(render(drawn, size), artefact, generator)
    return pixels, {"alignment": _alignment(s["kind"], wrong), "richness": drawn.richness.float(), "artefact": artefact}


def _another(value: Tensor, uniform: Tensor) -> Tensor:
    """(b,) one of the seven other values in 0 to 7; `uniform` (b,) in [0, 1) chooses it."""
    return (value + 1 + (uniform * 7).long()) % 8


def _alignment(kind: Tensor, wrong: dict[str, Tensor]) -> Tensor:
    """(b,) the share of right attributes: two of a scene with one object or group, four of a pair."""
    is_pair = (kind == 1).float()
    errors = sum(w.float() * (is_pair if name.endswith("_b") else 1) for name, w in wrong.items())
    return 1 - errors / (2 + 2 * is_pair)


def _degrade(pixels: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    """The pixels with blur and coloured 8 x 8 blocks, both in proportion to `strength` (b,)."""
    size = pixels.shape[-1]
    blurred = F.interpolate(F.avg_pool2d(pixels, 4), (size, size), mode="bilinear")
    blocks = F.interpolate(torch.randn(len(pixels), 3, 8, 8, generator=generator), (size, size), mode="nearest")
    s = strength[:, None, None, None]
    return (torch.lerp(pixels, blurred, s) + 0.06 * s * blocks).clamp(0, 1)


# ---- simulated votes --------------------------------------------------------------------------------------------


def utility(truth: dict[str, Tensor]) -> Tensor:
    """(b,) documented utility of a picture: 3 alignment + richness - 1.5 artefact."""
    return sum(weight * truth[name] for name, weight in UTILITY.items())


def votes(utility_a: Tensor, utility_b: Tensor, generator: torch.Generator) -> Tensor:
    """(b,) bool, does one simulated annotator prefer a? Bradley-Terry: P = sigmoid(BT_SCALE (utility_a - utility_b))."""
    preference = torch.sigmoid(BT_SCALE * (utility_a - utility_b))
    return torch.rand(len(utility_a), generator=generator) < preference


# ---- pairs ------------------------------------------------------------------------------------------------------


def weak_pairs(scenes: Scenes, generator: torch.Generator) -> datasets.Dataset:
    """Two pictures of each prompt by weak generators, JPEG at quality 75, in the columns of `data.pairs.PAIRS`. One vote orders
    them: image_1 is rejected, image_2 chosen; `agreed` says whether a second vote is the same."""
    a, truth_a = weak_generator(scenes, generator)
    b, truth_b = weak_generator(scenes, generator)
    utility_a = utility(truth_a)
    utility_b = utility(truth_b)
    first = votes(utility_a, utility_b, generator)
    second = votes(utility_a, utility_b, generator)
    prefers_a = first[:, None, None, None]
    chosen = torch.where(prefers_a, a, b)
    rejected = torch.where(prefers_a, b, a)
    columns = {"prompt_id": range(len(scenes)), "easy_prompt": captions(scenes), "image_1": encode(rejected, "JPEG", quality=75),
               "image_2": encode(chosen, "JPEG", quality=75), "agreed": (first == second).tolist()}  # fmt: skip
    columns |= {f"source_{i}": [SOURCE] * len(scenes) for i in (1, 2)}
    return datasets.Dataset.from_dict(columns, features=PAIRS)
