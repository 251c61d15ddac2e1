"""What a run will need, before it begins: `python -m icthp.plan [PARAMS.yaml] [name=value ...]` prints, stage by stage, pictures,
operations, hours, a GPU's memory at its peak and bytes on the disk; then downloads, licences to accept, and what is missing.

Values: gpu=H100 (a name of GPUS), gpus=1, share=0.4 of a GPU's peak rate, rows=1000 (pairs, where none are there to be counted). All is
computed from configurations (`blueprints`), by the models' own computations on tensors without numbers (`metering`)."""

import sys
from collections.abc import Callable
from functools import cached_property
from pathlib import Path

import pandas as pd
import pyarrow.parquet as pq
import torch
from torch import Tensor, nn

from icthp import blueprints, preflight
from icthp.freezing import freeze, image_layers, text_layers
from icthp.metering import Meter, size_of, without_numbers
from icthp.params import parse_arguments, read_params
from icthp.precision import DTYPES
from icthp.tables import names
from icthp.tuning.lora import LORA_TARGETS

GPUS = {"H100": 989e12, "H200": 989e12, "A100": 312e12, "L40S": 362e12, "RTX 4090": 165e12}  # dense bfloat16, per second, by their sheets
OPTIONS = {"gpu": "H100", "gpus": 1, "share": 0.4, "rows": 1000}
BYTES_A_PIXEL = 1.5  # of a generated picture as PNG: measured on the two published I3 of 1,024 pixels: 1.3 and 1.6
GB = 1e9


class Plan:
    """The stages of one file of parameters; each method gives a stage's row."""

    def __init__(self, params: dict, rows: int, gpus: int = 1):
        self.params = params
        self.gpus = gpus
        self.shared = params["shared"]
        self.dtype = DTYPES[self.shared["precision"]]
        self.size = self.shared["size"]
        self.rows = _count_rows(params["pick_high"]["pairs"]) or rows

    def _meter(self, run: Callable[[], Tensor], *modules: nn.Module, backward: bool = False) -> Meter:
        with Meter(*modules) as meter, torch.set_grad_enabled(backward):
            out = run()
            if backward:
                out.float().mean().backward()
        return meter

    @cached_property
    def scorer_bytes(self) -> int:
        """Of the towers that notebook 05 holds: one a source, ICT's and HP's those of the base CLIP."""
        with without_numbers(self.dtype):
            base, pickscore = size_of(blueprints.clip(self.shared["clip"])), size_of(blueprints.clip(self.shared["pickscore"]))
        count = len({"clip", "ict", "hp"} & {*names_of(self.shared["scorers"])})
        return base * count + pickscore * ("pickscore" in names_of(self.shared["scorers"]))

    # ---- what a generator costs ---------------------------------------------------------------------------------

    def drawing(self, source: str, steps: int, guidance: float) -> dict:
        """Operations a picture, and the peak of a batch: the transformer's, or the decoder's with it in memory."""
        batch = self.shared["generator_batch"]
        passes = 2 if guidance > 1 else 1
        with without_numbers(self.dtype):
            parts = blueprints.generator(source)
            weights = sum(map(size_of, (parts.transformer, parts.vae, *parts.text_encoders)))
            x = self._latents(parts, batch * passes)
            denoise = self._meter(lambda: self._velocity(parts, x), parts.transformer)
            decode = self._meter(lambda: parts.vae.decode(self._latents(parts, batch)).sample, parts.vae)
        weights += blueprints.positions_left_out(source) * self.dtype.itemsize
        return {
            "flops": steps * denoise.flops / batch + decode.flops / batch,
            "peak": weights + max(denoise.peak, decode.peak),
            "weights": weights,
        }

    def _latents(self, parts, batch: int, **options) -> Tensor:
        side = self.size // 2 ** (len(parts.vae.config.block_out_channels) - 1)
        return torch.empty(batch, parts.vae.config.latent_channels, side, side, **options)

    def _velocity(self, parts, x: Tensor) -> Tensor:
        config = parts.transformer.config
        prompt = torch.empty(len(x), parts.tokens, config.joint_attention_dim)
        pooled = torch.empty(len(x), config.pooled_projection_dim)
        return parts.transformer(x, prompt, pooled, torch.ones(len(x)), return_dict=False)[0]

    # ---- the stages ---------------------------------------------------------------------------------------------

    def pick_high(self) -> dict:
        own = self.params["pick_high"]
        drawing = self.drawing(own["generator"], own["generator_steps"], own["guidance"])
        language_model = 2 * GB * (blueprints.billions(own["refiner_model"]) or 0) if own["refiner"] == "transformers" else 0
        pixels = self.size**2
        disk = 3 * self.rows * BYTES_A_PIXEL * pixels  # shards, the dataset, dvc's cache
        peak = max(drawing["peak"], language_model)
        return {"stage": "pick_high", "pictures": self.rows, "flops": self.rows * drawing["flops"], "peak": peak, "disk": disk}

    def training(self, stage: str) -> dict:
        """ICT reads three pictures and two prompts a triplet, HP three pictures; half of HP's image tower is frozen."""
        own, texts = self.params[f"train_{stage}"], 2 if stage == "ict" else 0
        with without_numbers():
            model = blueprints.clip(self.shared["clip"])
            _freeze(model, own["frozen_fraction"], with_text=stage == "ict")
            trained = _trained_numbers(model)
            batch = own["batch"] // self.gpus
            pixels = torch.empty(3 * batch, 3, *_side(model))
            tokens = torch.zeros(texts * batch, model.context_length, dtype=torch.long)

            def loss() -> Tensor:
                with torch.autocast("cpu", torch.bfloat16, enabled=self.dtype == torch.bfloat16):
                    features = model.encode_image(pixels).square().mean()
                    return features + model.encode_text(tokens).square().mean() if texts else features

            meter = self._meter(loss, model, backward=True)
        peak = meter.peak + size_of(model) + 2 * 4 * trained  # AdamW's two averages; the gradients are counted
        store = 3 * self.rows * 3 * _side(model)[0] * _side(model)[1]
        return {
            "stage": f"train_{stage}",
            "pictures": 0,
            "flops": own["steps"] * meter.flops * self.gpus,
            "peak": peak,
            "disk": store if stage == "ict" else 0,
        }

    def draft(self) -> dict:
        """One reward's tuning, with what the monitor draws."""
        own = self.params["draft"]
        drawing = self.drawing(own["generator"], self.shared["sampler_steps"], own["guidance"])
        step = self.draft_step()
        monitored = own["steps"] // own["eval_every"] * own["eval_prompts"] + 2 * own["test_prompts"]
        pictures = own["steps"] * own["batch"] * own["lv_samples"]
        flops = own["steps"] * own["batch"] * step["flops"] + monitored * drawing["flops"]
        peak = max(self.scorer_bytes + step["peak"], drawing["weights"])  # scorers come when the text encoders have made room
        return {"stage": "draft, each reward", "pictures": pictures + monitored, "flops": flops, "peak": peak, "disk": 0.1 * GB}

    def draft_step(self) -> dict:
        """Operations a prompt, and the peak without the scorers: the last steps' graph, and the decoder's with the reward's."""
        own = self.params["draft"]
        k, passes = own["k"], 2 if own["guidance"] > 1 else 1
        batch = own["decode_batch"] if own["recompute_last_steps"] else own["batch"] * own["lv_samples"]  # with a graph at once
        with without_numbers(self.dtype):
            parts = blueprints.generator(own["generator"])
            _add_lora(parts.transformer, own["rank"])
            free = self._meter(lambda: self._velocity(parts, self._latents(parts, own["batch"])), parts.transformer)
            x = self._latents(parts, batch * passes, requires_grad=True)
            last_steps = self._meter(lambda: sum(self._velocity(parts, x) for _ in range(k)), parts.transformer, backward=True)
            latents = self._latents(parts, own["decode_batch"], requires_grad=True)
            tower = blueprints.clip(self.shared["clip"]).requires_grad_(False)
            rewarded = self._meter(lambda: self._reward(tower, parts.vae.decode(latents).sample.float()), parts.vae, tower, backward=True)
            weights = size_of(parts.transformer) + size_of(parts.vae) + 12 * _trained_numbers(parts.transformer)
        weights += blueprints.positions_left_out(own["generator"]) * self.dtype.itemsize
        peak = max(last_steps.peak, rewarded.peak) if own["recompute_last_steps"] else last_steps.peak + rewarded.peak
        again = 1 / 3 if own["recompute_last_steps"] else 0  # the last steps' forward once more
        untuned = last_steps.flops / 3 if own["anchor"] else 0
        free_steps = self.shared["sampler_steps"] - (0 if own["lv_samples"] > 1 else k)
        last = own["lv_samples"] * (last_steps.flops * (1 + again) + untuned) / batch
        flops = free_steps * passes * free.flops / own["batch"] + last + rewarded.flops * own["lv_samples"] / own["decode_batch"]
        return {"flops": flops, "peak": weights + max(peak, free.peak)}

    def _reward(self, tower: nn.Module, pixels: Tensor) -> Tensor:
        """A CLIP's: resized, and read by its image tower."""
        resized = nn.functional.interpolate(pixels, _side(tower), mode="bicubic", antialias=True)
        return tower.encode_image(resized.to(self.dtype)).square().mean()

    def evaluate(self) -> dict:
        own = self.params["evaluate"]
        tasks = (own["geneval_prompts"] or _count_lines(self.shared["prompts"]) or 553) * own["geneval_images"]
        generators = 1 + len(names_of(self.shared["rewards"])) + 4 * own["swap_text"]
        pictures = generators * (tasks + 2 * own["test_prompts"])
        drawing = self.drawing(own["generator"], self.shared["sampler_steps"], own["guidance"])
        scorers = self.scorer_bytes * 4 // self.dtype.itemsize  # in full precision here
        return {"stage": "evaluate", "pictures": pictures, "flops": pictures * drawing["flops"], "peak": max(drawing["peak"], scorers),
                "disk": pictures * BYTES_A_PIXEL * self.size**2}  # fmt: skip

    def stages(self) -> list[dict]:
        return [self.pick_high(), self.training("ict"), self.training("hp"), self.draft(), self.evaluate()]


def names_of(value) -> list[str]:
    return value if isinstance(value, list) else names(value)


def _side(model: nn.Module) -> tuple[int, int]:
    size = model.visual.image_size
    return size if isinstance(size, tuple) else (size, size)


def _freeze(model: nn.Module, fraction: float, with_text: bool) -> None:
    """Leave gradients to the layers that train, as `train` does for ICT, with its text tower, and HP."""
    model.requires_grad_(False)
    for layers, embeddings in (image_layers(model), text_layers(model)) if with_text else (image_layers(model),):
        nn.ModuleList(layers).requires_grad_(True)
        freeze(layers, embeddings, fraction)
    if with_text:
        for projection in (model.visual.proj, model.text_projection):
            projection.requires_grad_(True)


class _Lora(nn.Module):
    """What PEFT puts in the place of a linear layer: the update is computed in float32."""

    def __init__(self, base: nn.Linear, rank: int):
        super().__init__()
        self.base = base
        self.down = nn.Linear(base.in_features, rank, bias=False, dtype=torch.float32)
        self.up = nn.Linear(rank, base.out_features, bias=False, dtype=torch.float32)

    def forward(self, x: Tensor) -> Tensor:
        y = self.base(x)
        return (y + self.up(self.down(x.float()))).to(y.dtype)


def _add_lora(transformer: nn.Module, rank: int) -> None:
    """PEFT's own moves layers between devices, which those without numbers do not allow."""
    for path, layer in list(transformer.named_modules()):
        if isinstance(layer, nn.Linear) and path.endswith(tuple(f".{target}" for target in LORA_TARGETS)):
            parent, _, name = path.rpartition(".")
            setattr(transformer.get_submodule(parent), name, _Lora(layer, rank))


def _trained_numbers(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters() if p.requires_grad)


def _count_rows(pairs: str) -> int:
    return sum(pq.read_metadata(file).num_rows for file in Path(pairs).rglob("train*.parquet")) if Path(pairs).is_dir() else 0


def _count_lines(prompts: str) -> int:
    file = Path(prompts) / "geneval.jsonl"
    return len(file.read_text(encoding="utf-8").splitlines()) if file.exists() else 0


# ---- as text ----------------------------------------------------------------------------------------------------


def table(params: dict, gpu: str, gpus: int, share: float, rows: int) -> pd.DataFrame:
    """A row a stage; a tuning runs on one GPU, whatever their number."""
    frame = pd.DataFrame(Plan(params, rows, gpus).stages())
    shared_by = frame.stage.str.startswith("draft").map({True: 1, False: gpus})
    hours = frame.flops / (share * GPUS[gpu] * 3600 * shared_by)
    columns = {
        "PFLOP": frame.flops / 1e15,
        f"hours on {gpus} {gpu}": hours,
        "GB on the GPU": frame.peak / GB,
        "GB on the disk": frame.disk / GB,
    }
    return frame[["stage", "pictures"]].assign(**{name: values.round(2) for name, values in columns.items()})


def downloads(params: dict) -> list[str]:
    """Each source that is not on this machine, with its size in 16 bits and its licence."""
    sources = {params["shared"][name] for name in ("clip", "pickscore", "detector")}
    sources |= {params[section]["generator"] for section in ("explanations", "pick_high", "draft", "evaluate")}
    sources |= {params["pick_high"]["refiner_model"]} if params["pick_high"]["refiner"] == "transformers" else set()
    return [_download(source) for source in sorted(sources) if source and not Path(source.removeprefix("local-dir:")).exists()]


def _download(source: str) -> str:
    with without_numbers(torch.bfloat16):
        if source in blueprints.TRANSFORMERS:
            parts = blueprints.generator(source)
            size = sum(map(size_of, (parts.transformer, parts.vae, *parts.text_encoders))) + 2 * blueprints.positions_left_out(source)
        elif blueprints.billions(source):
            size = 2 * GB * blueprints.billions(source)
        else:
            size = 2 * size_of(blueprints.clip(source))  # published in 32 bits
    return f"{source}: {size / GB:.1f} GB. {blueprints.licence(source)}".rstrip(". ")


def main(argv: list[str]) -> int:
    file = argv[0] if argv and "=" not in argv[0] else "params.yaml"
    try:
        options = OPTIONS | parse_arguments([text for text in argv if "=" in text], OPTIONS, "icthp.plan")
        if options["gpu"] not in GPUS:
            raise ValueError(f"gpu is one of {', '.join(GPUS)}, not {options['gpu']}")
        params = read_params(file, needs_all=False)
        print(table(params, **options).to_string(index=False))
        rate = GPUS[options["gpu"]] / 1e12
        print(f"\nHours: at {options['share']:.0%} of {rate:.0f} TFLOP/s, the sheet's rate in bfloat16.")
        print("GB on the GPU: tensors that are alive at the peak; allow some 15 % more for the allocator and the libraries.")
        for title, lines in (("To download", downloads(params)), ("Missing", preflight.problems(params))):
            print(f"\n{title}:", *(f"- {line}" for line in lines or ["nothing"]), sep="\n")
    except (ValueError, OSError) as error:
        print(f"icthp.plan: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
