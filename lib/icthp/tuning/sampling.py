"""Pictures drawn, a batch at a time or in files that a killed run goes on with."""

import inspect
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import datasets
import pyarrow.parquet as pq
import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor

from icthp import files, images, shards
from icthp.pipelines import t5_length
from icthp.tuning import identity
from icthp.tuning.encoding import as_texts, prompt_arguments


def _editing(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The same parts as a pipeline that begins with a picture."""
    from diffusers import AutoPipelineForImage2Image  # its import is slow and warns of torch.jit.script, which one of its pipelines uses

    return AutoPipelineForImage2Image.from_pipe(pipe)


def sides(pipe: DiffusionPipeline, size) -> tuple[int, int]:
    """Height and width in pixels of one side, of two, or of None, the denoiser's own."""
    if size is None:
        denoiser = pipe.unet if getattr(pipe, "transformer", None) is None else pipe.transformer
        size = denoiser.config.sample_size * pipe.vae_scale_factor
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return height, width


@torch.no_grad()
def generate(
    pipe: DiffusionPipeline, prompts: list[str], *, steps: int, seed: int = 0, ids=None, batch: int = 64, size=None,
    guidance: float = 0.0, start: Tensor | None = None, strength: float = 1.0
) -> Tensor:  # fmt: skip
    """Pixels (n, 3, h, w) in [0, 1] on the CPU by the pipeline's own sampler; guidance off unless above 1.

    size: pixels, one side or (height, width), the pipeline's own unless given. Row i has noise of its own seed, seed + ids[i] (ids: the row
    numbers unless given), so it looks the same whatever the batch. start (n, 3, h, w) in [0, 1]: edit these pictures instead, by diffusers'
    image-to-image form of the pipeline (SDEdit, arXiv 2108.01073), which noises them to `strength` and takes that share of the steps,
    rounded up. ValueError for one text in place of a list, and for ids or start pictures that are not one a prompt."""
    prompts = as_texts(prompts)
    _check_one_each(prompts, ids, start)
    ids = range(len(prompts)) if ids is None else ids
    if start is None:
        draw = pipe
        height, width = (None, None) if size is None else sides(pipe, size)
    else:
        draw = _editing(pipe)
        height, width = start.shape[2:]
    if not prompts:
        return torch.zeros(0, 3, *(sides(pipe, size) if start is None else (height, width)))
    draw.set_progress_bar_config(disable=True)
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt", "height": height, "width": width}
    if isinstance(pipe, StableDiffusion3Pipeline):
        options["max_sequence_length"] = t5_length(pipe)
    takes = inspect.signature(draw.__call__).parameters  # some take an edit's size from the picture alone
    options = {name: value for name, value in options.items() if name in takes}
    pixels = []
    for i in range(0, len(prompts), batch):
        part = slice(i, i + batch)
        edit = {} if start is None else {"image": start[part], "strength": strength}
        noise = [torch.Generator().manual_seed(seed + int(k)) for k in ids[part]]
        pixels.append(draw(**prompt_arguments(pipe, prompts[part], guidance), generator=noise, **options, **edit).images.float().cpu())
    return torch.cat(pixels)


def _check_one_each(prompts: list[str], ids, start: Tensor | None) -> None:
    if any(given is not None and len(given) != len(prompts) for given in (ids, start)):
        raise ValueError(f"{len(prompts)} prompts need as many ids and start pictures, where those are given")
    if start is not None and not start.is_floating_point():
        raise ValueError(f"start pictures must be floats in [0, 1], not {start.dtype}")


def generate_shards(
    pipe: DiffusionPipeline, prompts: list[str], ids: list[int], folder, *, shard: int = 256,
    start: Callable[[slice], Tensor] | None = None, **options
) -> "Pictures":  # fmt: skip
    """Pictures of prompts as PNG contents for an Image() column, by generate(pipe, prompts, ids=ids, **options), read
    from the files that hold them; start(rows) -> the pictures to edit, if any.

    Every `shard` rows become one file under `folder`, written whole or not at all; a later call with the same prompts, ids,
    pictures, options and all else that the pictures depend on (`identity_of_pipeline`) reads it instead, unless it was cut
    short. Any number of processes that call this with the same arguments share the work (`shards.make_all`) and all return the whole; the
    pictures are the same whoever draws them. ValueError for ids that are not one a prompt."""
    prompts = as_texts(prompts)
    if len(ids) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many ids, not {len(ids)}")
    parts = [slice(first, first + shard) for first in range(0, len(prompts), shard)]
    numbers = list(map(int, ids))
    pipeline = identity.identity_of_pipeline(pipe)

    def key(part: slice) -> str:
        pictures = identity.identity_of(start(part) if start else None)
        tokens = identity.identity_of_tokens(pipe, prompts[part])
        return files.digest(pipeline, tokens, prompts[part], numbers[part], identity.identity_of(options), pictures)

    def draw(k: int) -> None:
        part = parts[k]
        edited = {"start": start(part)} if start else {}
        _write_shard(places[k], generate(pipe, prompts[part], ids=numbers[part], **edited, **options))

    places = [Path(folder) / f"{k:05d}-{key(part)}.parquet" for k, part in enumerate(parts)]
    shards.make_all(places, draw, lambda k: shards.is_whole_parquet(places[k], len(prompts[parts[k]])), label="draw")
    return Pictures(places, shard, len(prompts))


def _write_shard(file: Path, pixels: Tensor) -> None:
    features = datasets.Features({"image": datasets.Image()})
    files.atomic(file, datasets.Dataset.from_dict({"image": images.encode(pixels)}, features=features).to_parquet)


class Pictures(Sequence):
    """The pictures in files of `shard` rows each, as file contents; a slice reads the files that it needs."""

    def __init__(self, places: list[Path], shard: int, count: int):
        self.places = places
        self.shard = shard
        self.count = count

    def __len__(self) -> int:
        return self.count

    def __getitem__(self, index: int | slice):
        if not isinstance(index, slice):
            return self[index : index + 1][0] if index >= 0 else self[index + self.count]
        start, stop, step = index.indices(self.count)
        if step != 1:
            raise ValueError("pictures are read in order: take a slice without a step")
        first = start // self.shard
        rows = [row for place in self.places[first : -(-stop // self.shard)] for row in _read(place)]
        return rows[start - first * self.shard : stop - first * self.shard]

    def __iter__(self) -> Iterator[dict]:
        for place in self.places:
            yield from _read(place)


def _read(place: Path) -> list[dict]:
    return pq.read_table(place, columns=["image"]).column("image").to_pylist()
