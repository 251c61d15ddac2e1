"""What happens to held-out prompts while a generator is tuned. Where the reward still rises and the scores that share no part with it
fall, the reward is being gamed."""

from collections.abc import Callable, Collection, Iterable
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

RELATED = {"ict", "hp", "icthp"}  # trained on the same triplets from the same CLIP, and ICT-HP is ICT times HP
SNAPSHOT = 8  # pictures


def independent_names(reward: str, names: Iterable[str]) -> list[str]:
    """Those of the scorers' names that share neither part nor training data with the reward."""
    related = RELATED if reward in RELATED else {reward}
    return [name for name in names if name not in related]


class Monitor:
    """The `validate` of `tune`: monitor(model, step) draws the same prompts from the same noise and measures the pictures.

    scorer: the tuned reward. scorers {name: scorer}: all that look on; independent: the names of those that share nothing with the reward
    (`independent_names`). clip_scorer: its image features measure diversity. measure(pixels (n, 3, h, w) in [0, 1]) -> {name: (n,)}: what a
    detector reads. baseline (n, 3, h, w): the untuned generator's pictures of the prompts. folder: takes the first eight pictures of each
    call. sample_kwargs: those of `generate`.

    Each call returns numbers: "held_out_reward", the mean reward; "score_NAME", the mean of each scorer; "other_NAME", how far that of an
    independent one has moved from the baseline's, in standard deviations of the baseline's scores; "val_loss", minus the mean of these;
    "diversity", the mean CLIP distance between pictures of different prompts; "kb", the mean size of a JPEG file in kilobytes; and the
    means of `measure`. ValueError for fewer than two prompts, and for a baseline of other prompts."""

    def __init__(
        self, pipe: DiffusionPipeline, prompts: list[str], scorer: Scorer, scorers: dict[str, Scorer], clip_scorer, *,
        independent: Collection[str], measure: Callable[[Tensor], dict[str, Tensor]], baseline: Tensor, folder, **sample_kwargs
    ):  # fmt: skip
        if len(prompts) < 2:
            raise ValueError(f"diversity lies between the pictures of two prompts, and there are {len(prompts)}: raise eval_prompts")
        if len(baseline) != len(prompts):
            raise ValueError(f"{len(prompts)} prompts need as many pictures of the untuned generator, not {len(baseline)}")
        self.pipe, self.prompts = pipe, prompts
        self.scorer, self.scorers, self.clip_scorer = scorer, scorers, clip_scorer
        self.measure = measure
        self.baseline = {name: score_all(scorers[name], baseline, prompts) for name in independent}
        self.folder = Path(folder)
        self.sample_kwargs = sample_kwargs

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> dict[str, float | Tensor]:
        pixels = generate(self.pipe, self.prompts, **self.sample_kwargs)
        self._save_snapshot(pixels, step)
        means = {name: score_all(scorer, pixels, self.prompts).mean() for name, scorer in self.scorers.items()}
        shifts = {name: (means[name] - before.mean()) / before.std() for name, before in self.baseline.items()}
        features = self.clip_scorer.image_features(pixels.to(self.clip_scorer.device)).cpu()
        return {
            "val_loss": -np.mean(list(shifts.values())),
            "diversity": diversity(features, [0] * len(pixels)).mean(),
            "held_out_reward": score_all(self.scorer, pixels, self.prompts).mean(),
            "kb": images.jpeg_bytes(pixels).mean() / 1000,
            **{name: values.mean() for name, values in self.measure(pixels).items()},
            **{f"score_{name}": mean for name, mean in means.items()},
            **{f"other_{name}": shift for name, shift in shifts.items()},
        }

    def _save_snapshot(self, pixels: Tensor, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{step:06d}.npy", pixels[:SNAPSHOT].mul(255).round().byte())

    def snapshots(self) -> dict[int, Tensor]:
        """{step: its first pictures (m, 3, h, w) in [0, 1]}, in order."""
        return {int(file.stem): torch.from_numpy(np.load(file)).float() / 255 for file in sorted(self.folder.glob("*.npy"))}
