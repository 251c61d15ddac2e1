"""What happens to held-out prompts while a generator is tuned. Where the reward still rises and the scores that share no part with it
fall, the reward is being gamed."""

from collections.abc import Callable, Iterable
from pathlib import Path

import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from icthp import images
from icthp.evaluation.metrics import diversity
from icthp.evaluation.scoring import score_all
from icthp.scorers.base import Scorer
from icthp.tuning.sampling import generate

REWARD_PARTS = {"ict": {"ict", "icthp"}, "hp": {"hp", "icthp"}, "icthp": {"ict", "hp", "icthp"}}  # ICT-HP is ICT times HP
SNAPSHOT = 8  # pictures


def independent_names(reward: str, names: Iterable[str]) -> list[str]:
    """Those of the scorers' names that share no part with the reward."""
    parts = REWARD_PARTS.get(reward, {reward})
    return [name for name in names if name not in parts]


class Monitor:
    """The `validate` of `tune`: monitor(model, step) draws the same prompts from the same noise and measures the pictures.

    scorer: the tuned reward. monitor_scorers {name: scorer}: those that share no part with it. clip_scorer: its image features measure
    diversity. measure(pixels (n, 3, h, w) in [0, 1]) -> {name: (n,)}: what a detector reads. baseline (n, 3, h, w): the untuned
    generator's pictures of the prompts. folder: takes the first eight pictures of each call. sample_kwargs: those of `generate`.

    Each call returns numbers: "held_out_reward", the mean reward; "other_NAME", how far the mean of a monitor scorer has moved from the
    baseline's, in standard deviations of the baseline's scores; "val_loss", minus the mean of these; "diversity", the mean CLIP distance
    between pictures of different prompts; "kb", the mean size of a JPEG file in kilobytes; and the means of `measure`.
    ValueError for fewer than two prompts, and for a baseline of other prompts."""

    def __init__(
        self, pipe: DiffusionPipeline, prompts: list[str], scorer: Scorer, monitor_scorers: dict[str, Scorer], clip_scorer, *,
        measure: Callable[[Tensor], dict[str, Tensor]], baseline: Tensor, folder, **sample_kwargs
    ):  # fmt: skip
        if len(prompts) < 2:
            raise ValueError(f"diversity lies between the pictures of two prompts, and there are {len(prompts)}: raise eval_prompts")
        if len(baseline) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many pictures of the untuned generator, not {len(baseline)}")
        self.pipe, self.prompts = pipe, prompts
        self.scorer, self.monitor_scorers, self.clip_scorer = scorer, monitor_scorers, clip_scorer
        self.measure = measure
        self.baseline = {name: score_all(monitor, baseline, prompts) for name, monitor in monitor_scorers.items()}
        self.folder = Path(folder)
        self.sample_kwargs = sample_kwargs

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> dict[str, float | Tensor]:
        pixels = generate(self.pipe, self.prompts, **self.sample_kwargs)
        self._save_snapshot(pixels, step)
        shifts = self._shifts(pixels)
        features = self.clip_scorer.image_features(pixels.to(self.clip_scorer.device)).cpu()
        return {
            "val_loss": -np.mean(list(shifts.values())),
            "diversity": diversity(features, [0] * len(pixels)).mean(),
            "held_out_reward": score_all(self.scorer, pixels, self.prompts).mean(),
            "kb": images.jpeg_bytes(pixels).mean() / 1000,
            **{name: values.mean() for name, values in self.measure(pixels).items()},
            **shifts,
        }

    def _shifts(self, pixels: Tensor) -> dict[str, float]:
        """How far each monitor scorer's mean lies from the baseline's, in standard deviations of the baseline's scores."""
        shifts = {}
        for name, scorer in self.monitor_scorers.items():
            before = self.baseline[name]
            change = score_all(scorer, pixels, self.prompts) - before
            shifts[f"other_{name}"] = (change.mean() / before.std()).item()
        return shifts

    def _save_snapshot(self, pixels: Tensor, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{step:06d}.npy", pixels[:SNAPSHOT].mul(255).round().byte())

    def snapshots(self) -> dict[int, Tensor]:
        """{step: its first pictures (m, 3, h, w) in [0, 1]}, in order."""
        return {int(file.stem): torch.from_numpy(np.load(file)).float() / 255 for file in sorted(self.folder.glob("*.npy"))}
