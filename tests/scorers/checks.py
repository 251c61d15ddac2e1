"""What the tests of scorers share: pictures, preprocessing by torchvision, a gradient's and a batch's checks."""

import copy
import math

import open_clip
import torch
from torchvision.transforms.v2 import functional as tv

PROMPTS = ["a red circle", "two blue stars above a green heart", "a red circle"]
CLIP = (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD)


def pictures(height=40, width=54, count=3):
    """Noise on a colour, in [0.3, 0.7], whose edges do not overshoot when they are resized."""
    rand = lambda *shape: torch.rand(count, 3, *shape, generator=torch.Generator().manual_seed(0))
    return 0.3 + 0.2 * rand(1, 1) + 0.2 * rand(height, width)


def preprocessed(pixels, size, mean=CLIP[0], std=CLIP[1], *, interpolation=tv.InterpolationMode.BICUBIC, crop=None):
    """By torchvision; crop: "open_clip" or "transformers", which halve an odd margin differently; None squashes."""
    pixels = tv.resize(pixels, [size] if crop else [size, size], interpolation, antialias=True)
    halve = {None: round, "open_clip": round, "transformers": math.floor}[crop]
    top, left = (halve((n - size) / 2) for n in pixels.shape[-2:])
    return tv.normalize(pixels[..., top : top + size, left : left + size], mean, std)


def check_gradient(scorer, pixels, prompts=None, rtol=1e-5):
    """In float64 the gradient in the pixels is that of a central difference, and reaches every picture; the scorer's weights have none."""
    scorer.double()
    x = pixels.double().requires_grad_()
    scores = scorer.score(x, prompts)
    scores.sum().backward()
    direction = torch.randn(x.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    with torch.no_grad():
        more, less = (scorer.score(x + step * direction, prompts).sum() for step in (1e-6, -1e-6))
    assert scores.dtype == torch.float64 and x.grad.isfinite().all() and x.grad.abs().amax((1, 2, 3)).min() > 0
    torch.testing.assert_close((x.grad * direction).sum(), (more - less) / 2e-6, rtol=rtol, atol=1e-8)
    assert not any(p.requires_grad for p in scorer.parameters())
    scorer.float()


def check_batch(scorer, pixels, prompts=None):
    """A picture's score is the same alone and among others, near that of its bytes and that in bfloat16, and differs from the next."""
    scores = scorer.score(pixels, prompts)
    alone = [scorer.score(pixels[i : i + 1], prompts and prompts[i : i + 1]) for i in range(len(pixels))]
    torch.testing.assert_close(scores, torch.cat(alone), rtol=1e-5, atol=1e-6)
    assert scores.shape == (len(pixels),) and scores.dtype == torch.float32 and scores.diff().abs().min() > 1e-5
    bound = 0.2 * scores.abs().max() + 0.05
    assert (scorer.score((pixels * 255).round().byte(), prompts) - scores).abs().max() < bound
    assert scorer.score(pixels[:0], prompts and []).shape == (0,)
    rough = copy.deepcopy(scorer).bfloat16().score(pixels, prompts)
    assert rough.dtype == torch.float32 and (rough - scores).abs().max() < bound
