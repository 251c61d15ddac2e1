"""What happens to held-out prompts while a generator is tuned. Where the reward still rises and a score that shares nothing with it
falls, the reward is being gamed: `Monitor` watches for that, with the alarm that `alarms` found best."""

from collections.abc import Callable, Collection
from pathlib import Path

import datasets
import numpy as np
import torch
from diffusers import DiffusionPipeline
from torch import Tensor, nn

from icthp import files, images
from icthp.evaluation.metrics import diversity
from icthp.evaluation.scoring import score_all
from icthp.scorers.base import Scorer
from icthp.tuning.alarms import lowest_shift, watched
from icthp.tuning.sampling import generate

SNAPSHOT = 8  # pictures


class Monitor:
    """The `validate` of `tune`: monitor(model, step) draws the same prompts from the same noise and measures the pictures.

    scorer: the tuned reward. scorers {name: scorer}: all that look on; independent: the names of those that share nothing with the reward
    (`independent_names`). clip_scorer: its image features measure diversity. measure(pixels (n, 3, h, w) in [0, 1]) -> {name: (n,)}: what a
    detector reads. baseline (n, 3, h, w): the untuned generator's pictures of the prompts. folder: takes the first eight pictures of each
    call. sample_kwargs: those of `generate`.

    Each call returns numbers: "held_out_reward", the mean reward, and "gain", how far it has risen above the baseline's, in standard
    deviations of the baseline's rewards; "score_NAME", the mean of each scorer, and "other_NAME", how far that of each but the reward has
    risen, in the same way; "alarm", `alarms.lowest_shift` of the independent ones; "diversity", the mean CLIP distance between pictures of
    different prompts; "kb", the mean size of a JPEG file in kilobytes; and the means of `measure`. "val_loss" is what `alarms.watched` says
    of gain and alarm: `patience` counts evaluations at which the reward does not rise or the alarm rings, and the best weights are those of
    the highest reward without a ring. `untuned`: the same numbers of the baseline. ValueError for fewer than two prompts, and for a
    baseline of other prompts."""

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
        self.independent = independent
        self.measure = measure
        self.baseline = self._scores(baseline)
        self.untuned = self._numbers(baseline, self.baseline)
        self.folder = Path(folder)
        self.sample_kwargs = sample_kwargs

    @torch.no_grad()
    def __call__(self, model: nn.Module, step: int) -> dict[str, float]:
        pixels = generate(self.pipe, self.prompts, **self.sample_kwargs)
        self._save_snapshot(pixels, step)
        return self._numbers(pixels, self._scores(pixels))

    def _scores(self, pixels: Tensor) -> dict[str, Tensor]:
        """Each scorer's scores (n,) of the pictures, and the reward's, under "" where no scorer is the reward."""
        named = self.scorers if self.scorer in self.scorers.values() else self.scorers | {"": self.scorer}
        return {name: score_all(scorer, pixels, self.prompts) for name, scorer in named.items()}

    @torch.no_grad()
    def _numbers(self, pixels: Tensor, scores: dict[str, Tensor]) -> dict[str, float]:
        [own] = [name for name in scores if self.scorers.get(name, self.scorer) is self.scorer]
        shifts = {name: _shift(scores[name], self.baseline[name]) for name in scores}
        gain = shifts.pop(own)
        alarm = lowest_shift({name: shifts[name] for name in self.independent})
        features = self.clip_scorer.image_features(pixels.to(self.clip_scorer.device)).cpu()
        numbers = {
            "val_loss": watched(gain, alarm),
            "diversity": diversity(features, [0] * len(pixels)).mean(),
            "held_out_reward": scores[own].mean(),
            "kb": images.jpeg_bytes(pixels).mean() / 1000,
            **{name: values.mean() for name, values in self.measure(pixels).items()},
            **{f"score_{name}": scores[name].mean() for name in self.scorers},
            **{f"other_{name}": shift for name, shift in shifts.items()},
            "gain": gain,
            "alarm": alarm,
        }
        return {name: float(value) for name, value in numbers.items()}

    def _save_snapshot(self, pixels: Tensor, step: int) -> None:
        self.folder.mkdir(parents=True, exist_ok=True)
        np.save(self.folder / f"{step:06d}.npy", pixels[:SNAPSHOT].mul(255).round().byte())

    def snapshots(self) -> dict[int, Tensor]:
        """{step: its first pictures (m, 3, h, w) in [0, 1]}, in order."""
        return {int(file.stem): torch.from_numpy(np.load(file)).float() / 255 for file in sorted(self.folder.glob("*.npy"))}

    def write_snapshots(self, file, steps: Collection[int]) -> None:
        """The snapshots of these steps as a parquet file: step, the number of steps done; prompt; image, as PNG."""
        rows = []
        for step, pixels in self.snapshots().items():
            if step in steps:
                files_of_step = zip(self.prompts, images.encode(pixels))
                rows += [{"step": step + 1, "prompt": prompt, "image": picture} for prompt, picture in files_of_step]
        features = datasets.Features({"step": datasets.Value("int64"), "prompt": datasets.Value("string"), "image": datasets.Image()})
        files.atomic(Path(file), datasets.Dataset.from_list(rows, features=features).to_parquet)


def _shift(scores: Tensor, before: Tensor) -> float:
    """How far the mean has risen, in standard deviations of the scores before."""
    return float((scores.mean() - before.mean()) / before.std().clamp_min(1e-12))
