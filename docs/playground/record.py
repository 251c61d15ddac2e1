"""What the page of the playground knows, recorded with the models: scenes with their pictures and scores, and a tuning on each reward.

`python docs/playground/build.py record scenes clip ...` calls it; each of its files, scenes.json and tuning_REWARD.json, is whole or not
there, so a record that was stopped goes on with the next one."""

import base64
import io
import sys
import zlib
from functools import partial
from pathlib import Path

import numpy as np
import torch
from matplotlib.colors import to_hex
from PIL import Image

import icthp
from icthp import evaluation, figures, files, microworld, pipelines, tables, tuning
from icthp.microworld import playground

HERE = Path(__file__).parent
TOWERS = ("clip", "pickscore", "ict", "hp")  # whose scores are in the table
SCORES = (*TOWERS, "icthp")
REWARDS = dict(zip(SCORES, SCORES)) | {"edges": "notebooks/examples/edges.py:EdgeScorer"}
STEP = 0.005  # of a score in the table, in standard deviations
STOPS = [np.linspace(0, 1, count).tolist() for count in (49, 17, 4)]  # of richness, noise and blur
CHECKS = 60  # random points of each scene at which the table is compared with the models


def file_of(name: str) -> Path:
    return HERE / ("scenes.json" if name == "scenes" else f"tuning_{name}.json")


def record(name: str) -> None:
    """Write one file, if it is not there."""
    if not file_of(name).exists():
        files.save_json(file_of(name), record_scenes() if name == "scenes" else record_tuning(name))


# ---- scenes -----------------------------------------------------------------------------------------------------


def record_scenes() -> dict:
    scorers = icthp.load_all(dict.fromkeys(TOWERS))
    norms = playground.score_norms(icthp.load_all(dict.fromkeys(SCORES)))
    scenes = playground.first_held_out()
    rows, errors = [], []
    for i in range(len(scenes)):
        row, error = record_scene(scenes[i : i + 1], scorers, norms, torch.Generator().manual_seed(i))
        rows.append(row)
        errors.append(error)
        print(f"scene {i + 1} of {len(scenes)}: largest errors {error.amax((0, 1)).tolist()}", flush=True)
    names = [*SCORES, "edges"]
    return {
        "scorers": {name: {"label": figures.label(name), "colour": to_hex(figures.colour(name))} for name in names},
        "towers": list(TOWERS),
        "styles": list(playground.STYLES),
        "norms": norms,
        "stops": STOPS,
        "step": STEP,
        "noise": {"deviation": playground.NOISE, "field": packed(bytes_of(playground.noise_field() * 32))},
        "coarse": playground.COARSE,
        "size": 64,
        "models": {name: files.fingerprint(scorer)[:12] for name, scorer in scorers.items()},
        "errors": summary(torch.cat(errors)),
        "scenes": rows,
    }


def record_scene(scene, scorers: dict, norms: dict, generator: torch.Generator) -> tuple[dict, torch.Tensor]:
    """What the page knows of one scene, and the errors (CHECKS, prompts, SCORES) of its table in standard deviations."""
    renders = playground.level_renders(scene)
    prompts = playground.prompts_by_style(scene)
    values = partial(standardised, scorers, norms, renders, list(prompts.values()))
    codes = values(playground.grid_points(STOPS)).div(STEP).round()  # (points, prompts, towers)
    points = torch.rand(CHECKS, 3, generator=generator, dtype=torch.float64)
    expected = with_product(values(points), norms)
    error = (table_scores(codes, norms, points) - expected).abs()
    return {"prompts": prompts, "renders": packed(bytes_of(renders * 255)), "scores": packed(differences(codes))}, error


def standardised(scorers: dict, norms: dict, renders, prompts: list[str], points) -> torch.Tensor:
    """(n, prompts, scorers) float64: the models' scores of the pictures at points (n, 3), in standard deviations."""
    mean, deviation = torch.tensor([norms[name] for name in scorers], dtype=torch.float64).T
    parts = [playground.scores(scorers, playground.pictures(renders, part), prompts) for part in points.split(128)]
    return (torch.cat(parts) - mean) / deviation


def table_scores(codes: torch.Tensor, norms: dict, points: torch.Tensor) -> torch.Tensor:
    """(n, prompts, SCORES): what the page shows at points (n, 3), from the codes (points, prompts, towers) of its table."""
    table = (codes.double() * STEP).view(*map(len, STOPS), *codes.shape[1:])
    return with_product(playground.interpolate(table, STOPS, points), norms)


def with_product(values: torch.Tensor, norms: dict) -> torch.Tensor:
    """(..., towers) -> (..., SCORES), all in standard deviations: ICT-HP is the product of ICT and HP."""
    mean, deviation = torch.tensor([norms[name] for name in SCORES], dtype=torch.float64).T
    ict, hp = (values[..., i] * deviation[i] + mean[i] for i in (TOWERS.index("ict"), TOWERS.index("hp")))
    return torch.cat([values, ((ict * hp - mean[-1]) / deviation[-1])[..., None]], -1)


def summary(errors: torch.Tensor) -> dict:
    """Of all scores and of each one the largest error and that which 95 % stay below, in standard deviations."""
    measure = lambda e: {"largest": round(e.max().item(), 4), "q95": round(e.flatten().quantile(0.95).item(), 4)}
    return {"points": len(errors), **measure(errors), "of": {name: measure(errors[..., i]) for i, name in enumerate(SCORES)}}


def bytes_of(values: torch.Tensor) -> bytes:
    """(..., channels, h, w) as bytes with the channels last, negative ones in two's complement."""
    return values.round().movedim(-3, -1).to(torch.int16).numpy().astype(np.uint8).tobytes()


def differences(codes: torch.Tensor) -> bytes:
    """(points, prompts, scorers): for each prompt and scorer the first code and the differences of the others, int16, low byte first."""
    flat_codes = codes.permute(1, 2, 0).reshape(-1).to(torch.int16).numpy()
    return np.diff(flat_codes, prepend=np.int16(0)).astype("<i2").tobytes()


def packed(data: bytes) -> str:
    return base64.b64encode(zlib.compress(data, 9)).decode()


# ---- tunings ----------------------------------------------------------------------------------------------------

SETTINGS = {"steps": 100, "every": 5, "batch": 16, "sampler_steps": 4, "k": 1, "anchor": 0.0, "rank": 8, "lr": 1e-3, "seed": 42,
            "prompts": 32, "shown": 6}  # fmt: skip


def record_tuning(reward: str, settings: dict | None = None) -> dict:
    """A tuning by DRaFT-1 from beginning to end: pictures of the same held-out prompts, from the same noise, every few steps."""
    s = SETTINGS | (settings or {})
    scorers = icthp.load_all(dict.fromkeys(SCORES))
    scorer = scorers[reward] if reward in scorers else icthp.load(REWARDS[reward])
    train, test = (tables.read_lines(f"data/prompts/{name}.txt") for name in ("train", "test"))
    test = test[: s["prompts"]]
    pipe = pipelines.load_pipeline("data/hub/sd3", transformer="data/hub/small/transformer")
    tuning.encode_ahead(pipe, train + test)
    observe = Observer(pipe, test, {**scorers, reward: scorer}, reward, s)
    observe(None, -1)
    tuning.add_lora(pipe, s["rank"], seed=s["seed"])
    update = partial(tuning.draft_step, steps=s["sampler_steps"], k=s["k"], anchor=s["anchor"], merge=True)
    tuning.tune(
        pipe, train, scorer.score, update, batch=s["batch"], steps=s["steps"], lr=s["lr"], warmup=s["steps"] // 10, schedule="constant",
        weight_decay=0.0, betas=(0.9, 0.999), seed=s["seed"], validate=observe, validate_every=s["every"], label=reward)  # fmt: skip
    return {"reward": reward, "settings": s, "prompts": test[: s["shown"]], **observe.records()}


class Observer:
    """The `validate` of `tune` that keeps what it has drawn and measured."""

    def __init__(self, pipe, prompts: list[str], scorers: dict, reward: str, settings: dict):
        self.pipe, self.prompts, self.scorers, self.reward = pipe, prompts, scorers, reward
        self.settings = settings
        self.detector = microworld.load_detector("data/hub/detector")
        self.scenes = microworld.parse(prompts, torch.Generator().manual_seed(0))
        self.steps, self.frames, self.correct, self.scores = [], [], [], []

    @torch.no_grad()
    def __call__(self, model, step: int) -> dict:
        pixels = tuning.generate(self.pipe, self.prompts, steps=self.settings["sampler_steps"], seed=self.settings["seed"])
        self.steps.append(step + 1)
        self.frames.append(strip_of(pixels[: self.settings["shown"]]))
        self.correct.append(microworld.prompt_fulfilled(self.detector, pixels, self.scenes))
        self.scores.append({name: evaluation.score_all(scorer, pixels, self.prompts) for name, scorer in self.scorers.items()})
        return {"val_loss": 0.0}

    def records(self) -> dict:
        """For each step: the mean of each score in standard deviations of the untuned pictures, the share of prompts fulfilled; of the
        prompts shown the reward and whether each is fulfilled."""
        shown = self.settings["shown"]
        first = self.scores[0]
        shift = lambda name, values: (values.mean() - first[name].mean()).item() / first[name].std().item()
        return {
            "steps": self.steps,
            "frames": self.frames,
            "scores": {name: [round(shift(name, values[name]), 3) for values in self.scores] for name in self.scorers},
            "reward_mean": [round(values[self.reward].mean().item(), 4) for values in self.scores],
            "fulfilled": [round(float(np.mean(correct)), 4) for correct in self.correct],
            "shown_fulfilled": [[int(c) for c in correct[:shown]] for correct in self.correct],
            "shown_reward": [[round(v, 4) for v in values[self.reward][:shown].tolist()] for values in self.scores],
        }


def strip_of(pixels: torch.Tensor, quality: int = 45) -> str:
    """Pictures (n, 3, h, w) side by side as one WebP, in base64."""
    line = torch.cat(list(pixels), -1).mul(255).round().byte().permute(1, 2, 0).numpy()
    buffer = io.BytesIO()
    Image.fromarray(line).save(buffer, "WEBP", quality=quality, method=6, use_sharp_yuv=True)
    return base64.b64encode(buffer.getvalue()).decode()


if __name__ == "__main__":
    torch.set_num_threads(1)
    for wanted in sys.argv[1:] or ["scenes", *REWARDS]:
        record(wanted)
