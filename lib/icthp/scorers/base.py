"""What every scorer has: score(pixels in [0, 1], prompts) -> Tensor (b,), its table, its ranking, and its last step in float32."""

import torch
from torch import Tensor, nn

from icthp.images import read
from icthp.losses import no_autocast
from icthp.losses import upcast as wide
from icthp.preprocessing import Preprocessing


class Scorer(nn.Module):
    """Base of all scorers. `needs_prompt` says whether prompts may be None; `score_scale` what the number means."""

    needs_prompt = True
    score_scale = "cosine"
    name = ""  # as `scores.load` knows it
    preprocessing: Preprocessing | None = None  # what is done to a picture first, where one recipe says it all

    def score(self, pixels: Tensor, prompts: list[str] | None = None) -> Tensor:
        """pixels (b, 3, h, w) float in [0, 1], or uint8, which is faster and has no gradient; b prompts, or None for scorers
        of the image alone -> (b,).

        Raises ValueError for pixels of another shape or range, or for a missing or miscounted prompt list or one that holds no text."""
        check_pixels(pixels)
        if self.needs_prompt and (prompts is None or isinstance(prompts, str) or len(prompts) != len(pixels)):
            got = "none" if prompts is None else "one string" if isinstance(prompts, str) else len(prompts)
            raise ValueError(f"this scorer needs a list of {len(pixels)} prompts, one for each image, not {got}")
        if self.needs_prompt:
            _texts(prompts)
        return self(pixels, list(prompts) if self.needs_prompt else None) if len(pixels) else pixels.new_zeros(0, dtype=torch.float32)

    def score_matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        """Every picture of pixels (b, 3, h, w) with every one of p prompts -> (b, p); scorers of two towers run each once."""
        check_pixels(pixels)
        if isinstance(prompts, str):
            raise ValueError("prompts must be a list of texts, not one string")
        if not prompts:
            raise ValueError("prompts must hold at least one text")
        _texts(prompts)
        return self._score_matrix(pixels, list(prompts)) if len(pixels) else pixels.new_zeros(0, len(prompts), dtype=torch.float32)

    def is_truncated(self, prompts: list[str]) -> Tensor:
        """(b,) bool: is a prompt longer than this scorer reads? Of scorers without a limit, or of the image alone, none is."""
        return torch.zeros(len(prompts), dtype=torch.bool)

    def _score_matrix(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        if not self.needs_prompt:
            return self(pixels)[:, None].expand(-1, len(prompts))
        return torch.stack([self(pixels, [prompt] * len(pixels)) for prompt in prompts], 1)

    @torch.no_grad()
    def rank(self, prompt: str, images) -> list[tuple[int, float]]:
        """PIL images or paths of one prompt -> (index, score), best first."""
        scores = [self.score(read(i)[None].to(self.device), [prompt]).item() for i in images]
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


def _texts(prompts) -> None:
    if (bad := next((i for i, p in enumerate(prompts) if not isinstance(p, str)), None)) is not None:
        raise ValueError(f"prompt {bad} is {prompts[bad]!r}, not a text")


def apply_head(head: nn.Module, features: Tensor) -> Tensor:
    """head(features), at least in float32, outside any autocast region."""
    features = wide(features)
    with no_autocast(features.device):
        if next(head.parameters()).dtype in (torch.float32, torch.float64):
            return head(features.to(next(head.parameters()).dtype))
        return torch.func.functional_call(head, {name: p.float() for name, p in head.named_parameters()}, features.float())
