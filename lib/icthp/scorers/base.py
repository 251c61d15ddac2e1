"""What every scorer has: score(pixels in [0, 1], prompts) -> Tensor (b,), its matrix, its ranking, and its last step in float32."""

import re

import torch
from torch import Tensor, nn

from icthp.images import read
from icthp.losses import no_autocast, upcast
from icthp.preprocessing import Preprocessing

ADDRESS = re.compile(r" at 0x[0-9a-f]+")  # of an object without a repr of its own: another one in every process


class Scorer(nn.Module):
    """Base of all scorers. A subclass has forward(pixels, prompts) -> (b,), called after `score` has checked its arguments.
    `needs_prompt`: if False, prompts may be None and are not handed on; `score_scale`: what the number means."""

    needs_prompt = True
    score_scale = "cosine"
    name = ""  # as `load` knows it
    provenance = ""  # of a user's class: its source and the digest of its code, shown by repr, which tells scorers apart
    preprocessing: Preprocessing | None = None  # of an image before the model reads it; None if several parts differ

    def __repr__(self) -> str:
        return ADDRESS.sub("", super().__repr__()) + self.provenance

    def score(self, pixels: Tensor, prompts: list[str] | None = None) -> Tensor:
        """pixels (b, 3, h, w) float in [0, 1], or uint8, which is faster and has no gradient; b prompts, or None for scorers
        of the image alone -> (b,).

        Raises ValueError for pixels of another shape or range, and for a missing or miscounted prompt list or an entry that is no
        text."""
        check_pixels(pixels)
        if self.needs_prompt:
            _check_prompts(prompts, len(pixels))
        if not len(pixels):
            return pixels.new_zeros(0, dtype=torch.float32)
        return self(pixels, list(prompts) if self.needs_prompt else None)

    def score_matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Every image of pixels (b, 3, h, w) with every one of p prompts -> (b, p); scorers of two towers run each once."""
        check_pixels(pixels)
        if isinstance(prompts, str):
            raise ValueError("prompts must be a list of texts, not one string")
        if not prompts:
            raise ValueError("prompts must hold at least one text")
        _check_texts(prompts)
        return self._score_matrix(pixels, list(prompts)) if len(pixels) else pixels.new_zeros(0, len(prompts), dtype=torch.float32)

    def is_truncated(self, prompts: list[str]) -> Tensor:
        """(b,) bool: is a prompt longer than this scorer reads? False for scorers without a limit or of the image alone."""
        return torch.zeros(len(prompts), dtype=torch.bool)

    def _score_matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        if not self.needs_prompt:
            return self(pixels, None)[:, None].expand(-1, len(prompts))
        return torch.stack([self(pixels, [prompt] * len(pixels)) for prompt in prompts], 1)

    @torch.no_grad()
    def rank(self, prompt: str, images) -> list[tuple[int, float]]:
        """PIL images or paths for one prompt -> (index, score), best first."""
        scores = [self.score(read(image)[None].to(self.device), [prompt]).item() for image in images]
        return sorted(enumerate(scores), key=lambda pair: -pair[1])

    @property
    def device(self) -> torch.device:
        return next((p.device for p in self.parameters()), torch.device("cpu"))


def check_pixels(pixels: Tensor) -> None:
    """Raises ValueError unless pixels are (b, 3, h, w), float in [0, 1] or uint8."""
    if pixels.ndim != 4 or pixels.shape[1] != 3 or not (pixels.is_floating_point() or pixels.dtype == torch.uint8):
        raise ValueError(f"pixels must be float or uint8 (b, 3, h, w), not {pixels.dtype} {tuple(pixels.shape)}")
    if not all(pixels.shape[2:]):
        raise ValueError(f"pixels {tuple(pixels.shape)} have no height or no width")
    if pixels.is_floating_point() and pixels.numel() and (pixels.min() < -0.01 or pixels.max() > 1.01):  # NaN scores NaN
        raise ValueError(f"pixels must lie in [0, 1], not [{pixels.min():.3g}, {pixels.max():.3g}]")


def _check_prompts(prompts, count: int) -> None:
    if prompts is None or isinstance(prompts, str) or len(prompts) != count:
        got = "none" if prompts is None else "one string" if isinstance(prompts, str) else len(prompts)
        raise ValueError(f"this scorer needs a list of {count} prompts, one for each image, not {got}")
    _check_texts(prompts)


def _check_texts(prompts) -> None:
    for i, prompt in enumerate(prompts):
        if not isinstance(prompt, str):
            raise ValueError(f"prompt {i} is {prompt!r}, not a text")


def is_longer(tokenizer, texts: list[str], length: int) -> Tensor:
    """(b,) bool: has a text more than `length` tokens of a transformers tokenizer, its own control tokens counted?"""
    return torch.tensor([len(ids) > length for ids in (tokenizer(list(texts)).input_ids if texts else [])], dtype=torch.bool)


def apply_head(head: nn.Module, features: Tensor) -> Tensor:
    """head(features), at least in float32, outside any autocast region."""
    features = upcast(features)
    dtype = next(head.parameters()).dtype
    with no_autocast(features.device):
        if dtype in (torch.float32, torch.float64):
            return head(features.to(dtype))
        return torch.func.functional_call(head, {name: p.float() for name, p in head.named_parameters()}, features.float())
