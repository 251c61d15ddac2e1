"""microworld.annotators."""

import datasets
import torch
import torch.nn.functional as F
from torch import Tensor

from icthp.data.pairs import PAIRS
from icthp.images import encode
from icthp.microworld.grammar import captions
from icthp.microworld.renderer import render
from icthp.microworld.scenes import Scenes


def weak_pairs(scenes: Scenes, generator: torch.Generator) -> datasets.Dataset:
    """The microworld's Pick-a-Pic: two legacy pictures of each prompt, JPEG at quality 75, ordered by one vote."""
    (a, truth_a), (b, truth_b) = (weak_generator(scenes, generator) for _ in range(2))
    utility_a, utility_b = utility(truth_a), utility(truth_b)
    first, second = (votes(utility_a, utility_b, generator) for _ in range(2))
    won, lost = (torch.where(w[:, None, None, None], a, b) for w in (first, ~first))
    columns = {"prompt_id": range(len(scenes)), "easy_prompt": captions(scenes), "image_1": encode(lost, "JPEG", quality=75),
               "image_2": encode(won, "JPEG", quality=75), "agreed": (first == second).tolist()}  # fmt: skip
    columns |= {f"source_{i}": ["legacy generator of the microworld"] * len(scenes) for i in (1, 2)}
    return datasets.Dataset.from_dict(columns, features=PAIRS)


# ---- legacy generators and simulated votes ------------------------------------------------------------------------

UTILITY = {"alignment": 3.0, "richness": 1.0, "artefact": -1.5}  # documented taste of the simulated annotators
BT_SCALE = 2.1  # Bradley-Terry slope: two annotators agree on about 70 to 75 % of pairs, as people do


def weak_generator(scenes: Scenes, generator: torch.Generator, size: int = 64) -> tuple[Tensor, dict[str, Tensor]]:
    """What an old generator makes of the prompts: attributes go wrong, richness is low, blur and blocks appear.

    Returns pixels (b, 3, size, size) and (b,) float32 truths: alignment, the share of described attributes kept;
    richness; artefact, the strength of blur and blocks in [0, 1].
    """
    n, s = len(scenes), scenes.latents
    rand = lambda: torch.rand(n, generator=generator)
    wrong = {k: rand() < 0.18 for k in ("shape_a", "colour_a", "shape_b", "colour_b")}
    fresh = {k: torch.where(w, (s[k] + 1 + (rand() * 7).long()) % 8, s[k]) for k, w in wrong.items()}
    drawn = scenes.replace(**fresh).at(rand() * 0.6)
    has_b = (s["kind"] == 1).float()
    errors = sum(w.float() * (has_b if k.endswith("_b") else 1) for k, w in wrong.items())
    artefact = rand() ** 2
    pixels = _degrade(render(drawn, size), artefact, generator)
    return pixels, {"alignment": 1 - errors / (2 + 2 * has_b), "richness": drawn.richness.float(), "artefact": artefact}


def _degrade(pixels: Tensor, strength: Tensor, generator: torch.Generator) -> Tensor:
    size = pixels.shape[-1]
    soft = F.interpolate(F.avg_pool2d(pixels, 4), (size, size), mode="bilinear")
    blocks = F.interpolate(torch.randn(len(pixels), 3, 8, 8, generator=generator), (size, size), mode="nearest")
    s = strength[:, None, None, None]
    return (torch.lerp(pixels, soft, s) + 0.06 * s * blocks).clamp(0, 1)


def utility(truth: dict[str, Tensor]) -> Tensor:
    """(b,) documented utility of a picture: 3 alignment + richness - 1.5 artefact."""
    return sum(weight * truth[name] for name, weight in UTILITY.items())


def votes(utility_a: Tensor, utility_b: Tensor, generator: torch.Generator) -> Tensor:
    """(b,) bool, True where one simulated annotator prefers a: Bradley-Terry with slope DISCERNMENT."""
    preference = torch.sigmoid(BT_SCALE * (utility_a - utility_b))
    return torch.rand(len(utility_a), generator=generator) < preference
