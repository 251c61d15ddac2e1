"""DRaFT-K and DRaFT-LV (Clark et al., arXiv 2309.17400) on a flow-matching diffusers pipeline.

Sample from noise without a graph, keep the graph of the last k steps, decode, score, and send the reward's gradient back
into the LoRA parameters. Decoder and reward hold their graph for one micro-batch at a time: their gradient with respect
to the latents is all that the transformer's backward pass needs.
"""

import contextlib
import copy
import inspect
from collections.abc import Callable, Iterator
from pathlib import Path

import datasets
import pyarrow as pa
import pyarrow.parquet as pq
import torch
from accelerate import PartialState
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from diffusers.utils.torch_utils import randn_tensor
from torch import Tensor

from icthp import files
from icthp.images import encode as encode_pictures
from icthp.pipelines import t5_length
from icthp.tuning import identity
from icthp.tuning.lora import without_lora


def encode(pipe: StableDiffusion3Pipeline, prompts: list[str], batch: int = 256) -> tuple[Tensor, Tensor]:
    """Prompt embeddings (b, n, d) and pooled (b, p), without a graph. ValueError for no prompt, or one that is no list."""
    length, parts = t5_length(pipe), []
    if not len(prompts := as_texts(prompts)):
        raise ValueError("there is no prompt to encode")
    for i in range(0, len(prompts), batch):
        some = prompts[i : i + batch]
        with torch.no_grad():
            embeds, _, pooled, _ = pipe.encode_prompt(some, some, some, do_classifier_free_guidance=False, max_sequence_length=length)
        parts.append((embeds, pooled))
    embeds, pooled = (torch.cat(part) for part in zip(*parts))
    return embeds, pooled


def as_texts(prompts) -> list[str]:
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of texts, not one text: [{prompts!r}]")
    return list(prompts)


def _denoiser(pipe: DiffusionPipeline) -> torch.nn.Module:
    return pipe.unet if getattr(pipe, "transformer", None) is None else pipe.transformer


def _editing(pipe: DiffusionPipeline) -> DiffusionPipeline:
    """The same parts as a pipeline that begins with a picture."""
    from diffusers import AutoPipelineForImage2Image  # its import is slow and warns of torch.jit.script, which one of its pipelines uses

    return AutoPipelineForImage2Image.from_pipe(pipe)


def _sides(pipe: DiffusionPipeline, size) -> tuple[int, int]:
    """Height and width in pixels of one side, of two, or of None, the denoiser's own."""
    size = _denoiser(pipe).config.sample_size * pipe.vae_scale_factor if size is None else size
    height, width = size if isinstance(size, tuple | list) else (size, size)
    return height, width


@torch.no_grad()
def generate(
    pipe: DiffusionPipeline, prompts: list[str], *, steps: int, seed: int = 0, ids=None, batch: int = 64, size=None,
    guidance: float = 0.0, start: Tensor | None = None, strength: float = 1.0, base_steps: int = 0
) -> Tensor:  # fmt: skip
    """Pixels (n, 3, h, w) in [0, 1] on the CPU by the pipeline's own sampler; guidance off unless above 1. size: pixels, one
    side or (height, width), the pipeline's own unless given. Row i has noise of its own seed, seed + ids[i] (ids: the row
    numbers unless given), so it looks the same whatever the batch. start (n, 3, h, w) in [0, 1]: edit these pictures instead,
    by diffusers' image-to-image form of the pipeline (SDEdit, arXiv 2108.01073), which noises them to `strength` and takes
    that share of the steps, rounded up. base_steps: the LoRA (see `without_lora`) enters after so many steps, so that the
    untuned transformer lays the picture out. ValueError for more of them than there are, for one text in place of a list, and
    for ids or start pictures that are not one a prompt."""
    prompts = as_texts(prompts)
    if any(given is not None and len(given) != len(prompts) for given in (ids, start)):
        raise ValueError(f"{len(prompts)} prompts need as many ids and start pictures, where those are given")
    if start is not None and not start.is_floating_point():
        raise ValueError(f"start pictures must be floats in [0, 1], not {start.dtype}")
    taken = steps if start is None else steps - int(max(steps - steps * strength, 0))
    if not 0 <= base_steps <= taken:
        raise ValueError(f"base_steps must lie in 0..{taken}, the steps taken, not {base_steps}")
    ids = range(len(prompts)) if ids is None else ids
    height, width = start.shape[2:] if start is not None else (None, None) if size is None else _sides(pipe, size)
    options = {"num_inference_steps": steps, "guidance_scale": guidance, "output_type": "pt", "height": height, "width": width}
    if isinstance(pipe, StableDiffusion3Pipeline):
        options["max_sequence_length"] = t5_length(pipe)
    draw = pipe if start is None else _editing(pipe)
    draw.set_progress_bar_config(disable=True)
    known = inspect.signature(draw.__call__).parameters  # some take an edit's size from the picture alone
    options = {name: value for name, value in options.items() if name in known}
    out = [] if prompts else [torch.zeros(0, 3, *(_sides(pipe, size) if start is None else start.shape[2:]))]
    for i in range(0, len(prompts), batch):
        part = slice(i, i + batch)
        edit = {} if start is None else {"image": start[part], "strength": strength}
        noise = [torch.Generator().manual_seed(seed + int(k)) for k in ids[part]]
        with contextlib.ExitStack() as untuned:
            if base_steps:
                untuned.enter_context(without_lora(_denoiser(pipe)))
                edit["callback_on_step_end"] = lambda p, i, t, kept, end=untuned.close: (end() if i + 1 == base_steps else None) or kept
            out.append(draw(prompts[part], generator=noise, **options, **edit).images.float().cpu())
    return torch.cat(out)


def generate_shards(
    pipe: DiffusionPipeline, prompts: list[str], ids: list[int], folder, *, shard: int = 256,
    start: Callable[[slice], Tensor] | None = None, **options
) -> Iterator[dict]:  # fmt: skip
    """Pictures of prompts as PNG contents for an Image() column, by generate(pipe, prompts, ids=ids, **options), read one by
    one from the files that hold them; start(rows) -> the pictures to edit, if any.

    Every `shard` rows become one file under `folder`, written whole or not at all; a later call with the same prompts, ids,
    pictures, options and all else that the pictures depend on (`identity.of_pipeline`) reads it instead, unless it was cut
    short. Under `accelerate launch` or `torchrun` each process draws every n-th shard and all return the whole; shards are
    cut alike whatever the number of processes, and so are the pictures."""
    process, shards, prompts = PartialState(cpu=pipe.device.type == "cpu"), [], as_texts(prompts)
    if len(ids) != len(prompts):
        raise ValueError(f"{len(prompts)} prompts need as many ids, not {len(ids)}")
    own = identity.identity_of_pipeline(pipe)
    for k, first in enumerate(range(0, len(prompts), shard)):
        part = slice(first, first + shard)
        texts, numbers, pictures = prompts[part], list(map(int, ids[part])), start(part) if start else None
        key = files.digest(
            own, identity.identity_of_tokens(pipe, texts), texts, numbers, identity.identity_of(options), identity.identity_of(pictures)
        )
        shards.append(Path(folder) / f"{k:05d}-{key}.parquet")
        if k % process.num_processes == process.process_index and not _is_whole(shards[-1], len(texts)):
            drawn = generate(pipe, texts, ids=numbers, start=pictures, **options)
            rows = datasets.Dataset.from_dict({"image": encode_pictures(drawn)}, features=datasets.Features({"image": datasets.Image()}))
            files.atomic(shards[-1], rows.to_parquet)
    process.wait_for_everyone()
    return (row["image"] for file in shards for rows in pq.ParquetFile(file).iter_batches(64) for row in rows.to_pylist())


def _is_whole(file: Path, rows: int) -> bool:
    """Is it there with so many rows? A parquet file that was cut has lost its end, where their number stands."""
    try:
        return pq.read_metadata(file).num_rows == rows
    except (OSError, pa.ArrowInvalid):
        return False


def latents(pipe: StableDiffusion3Pipeline, pixels: Tensor) -> Tensor:
    """Pixels (b, 3, h, w) in [0, 1] -> the autoencoder's mean latents in the transformer's units; `decode` goes back."""
    vae = pipe.vae
    mean = vae.encode((pixels * 2 - 1).to(vae.dtype)).latent_dist.mean.float()
    return (mean - vae.config.shift_factor) * vae.config.scaling_factor


def decode(pipe: StableDiffusion3Pipeline, latents: Tensor) -> Tensor:
    """Latents -> pixels (b, 3, h, w) in [0, 1], differentiable."""
    vae = pipe.vae
    pixels = vae.decode((latents / vae.config.scaling_factor + vae.config.shift_factor).to(vae.dtype)).sample
    return (pixels.float() / 2 + 0.5).clamp(0, 1)


def initial_noise(pipe, count: int, size, generator) -> Tensor:
    config, scale, sides = pipe.transformer.config, pipe.vae_scale_factor, _sides(pipe, size)
    if any(side % (scale * config.patch_size) for side in sides):
        raise ValueError(f"size must be a multiple of {scale * config.patch_size} pixels, the transformer's patches, not {size}")
    return randn_tensor(
        (count, config.in_channels, *(side // scale for side in sides)), generator=generator, device=pipe.transformer.device
    )


def velocity(transformer, x: Tensor, sigma: float | Tensor, told) -> Tensor:
    """float32 velocity (b, c, h, w) at x of level sigma, a number or (b,), told prompt embeddings and pooled."""
    time = torch.as_tensor(sigma, device=x.device).expand(len(x)) * 1000
    return transformer(x.to(told[0].dtype), *told, time, return_dict=False)[0].float()


def noise_levels(pipe: StableDiffusion3Pipeline, steps: int) -> Tensor:
    """(steps + 1,) noise levels from 1 to 0, by the pipeline's own scheduler as it stands. ValueError for one whose steps are no plain
    Euler steps between them."""
    scheduler = copy.deepcopy(pipe.scheduler)
    if scheduler.config.get("use_dynamic_shifting"):
        raise ValueError("dynamic shifting of the noise schedule is not supported; load the pipeline with a fixed `shift`")
    if scheduler.config.get("stochastic_sampling"):
        raise ValueError("a scheduler with stochastic_sampling is not supported: load the pipeline without it")
    scheduler.set_timesteps(steps)
    if len(scheduler.sigmas) != steps + 1 or scheduler.sigmas[-1] != 0:
        name = type(scheduler).__name__
        raise ValueError(f"{name} is not supported, its {steps} steps are no Euler steps: take a FlowMatchEulerDiscreteScheduler")
    return scheduler.sigmas
