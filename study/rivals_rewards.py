"""The rewards of the bench, by their names in study/rivals.yaml: every one in standard deviations of the untuned generator's pictures."""

import results
import torch

import icthp
from icthp import evaluation, microworld


class Standardised(icthp.scorers.Scorer):
    """A scorer in standard deviations of its scores of the untuned generator's pictures, from their mean."""

    def __init__(self, scorer, pixels, prompts):
        super().__init__()
        scores = evaluation.score_all(scorer, pixels, prompts)
        self.scorer, self.mean, self.deviation = scorer, scores.mean().item(), scores.std().item()

    def extra_repr(self) -> str:
        return f"{self.mean}, {self.deviation}"

    def forward(self, pixels, prompts):
        return (self.scorer(pixels, prompts) - self.mean) / self.deviation


class Mean(icthp.scorers.Scorer):
    """The mean of scorers, each standardised, less a penalty times the artefacts that a detector reads."""

    def __init__(self, parts, detector=None, penalty=0.0):
        super().__init__()
        self.parts, self.detector, self.penalty = torch.nn.ModuleList(parts), detector, penalty

    def extra_repr(self) -> str:
        return f"penalty={self.penalty}"

    def forward(self, pixels, prompts):
        mean = torch.stack([part(pixels, prompts) for part in self.parts]).mean(0)
        if self.penalty:
            mean = mean - self.penalty * microworld.smooth_qualities(self.detector, pixels, scenes_of(prompts))["artefact"]
        return mean


def scenes_of(prompts: list[str]):
    return microworld.parse(prompts, torch.Generator().manual_seed(0))


def rich(prompt: str) -> str:
    """The longest caption of a scene that the prompt describes."""
    return microworld.captions(scenes_of([prompt]).at(1), "long")[0]


def reward_of(name: str, needs_gradient: bool, base: torch.Tensor, prompts: list[str], shared: dict):
    """The scorer of a reward of rivals.yaml, standardised on the untuned generator's pictures `base` of the prompts."""
    load = lambda part: icthp.load(part, results.sources(shared)[part])
    detector = microworld.Detector.load(shared["micro_detector"]).requires_grad_(False)
    standardised = lambda scorer: Standardised(scorer, base, prompts)
    if name in ("truth", "votes"):
        scorer = microworld.UtilityScorer(detector, smooth=needs_gradient, votes=name == "votes")
    elif name.startswith("relative_"):
        scorer = icthp.scorers.RelativeScorer(load(name.removeprefix("relative_")), rich, str)
    elif name.startswith("mean"):
        parts = [standardised(load(part)) for part in ("pickscore", "ict", "hp")]
        scorer = Mean(parts, detector, penalty=2.0 if name == "mean_less_artefacts" else 0.0)
    else:
        scorer = load(name)
    return standardised(scorer.eval().requires_grad_(False))
