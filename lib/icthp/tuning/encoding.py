"""Prompts as a generator reads them: encoded when they are needed, or once, before its text encoders make room."""

import torch
from diffusers import DiffusionPipeline, StableDiffusion3Pipeline
from torch import Tensor

from icthp.pipelines import t5_length

TEXT_ENCODERS = ("text_encoder", "text_encoder_2", "text_encoder_3")


def as_texts(prompts) -> list[str]:
    if isinstance(prompts, str):
        raise ValueError(f"prompts must be a list of texts, not one text: [{prompts!r}]")
    return list(prompts)


class EncodedPrompts:
    """The embeddings of different prompts, in the memory of the CPU: 2.7 MB a prompt for Stable Diffusion 3.5 with its T5 encoder. `embeds`
    (n, tokens, d), `pooled` (n, p)."""

    def __init__(self, pipe: StableDiffusion3Pipeline, prompts: list[str], batch: int = 256):
        texts = list(dict.fromkeys(as_texts(prompts)))
        if not texts:
            raise ValueError("there is no prompt to encode")
        parts = [_encode(pipe, texts[i : i + batch]) for i in range(0, len(texts), batch)]
        self.embeds, self.pooled = (torch.cat([part.cpu() for part in column]) for column in zip(*parts))
        self.places = {text: i for i, text in enumerate(texts)}

    def of(self, prompts: list[str], device) -> tuple[Tensor, Tensor]:
        """Embeddings (b, n, d) and pooled (b, p) on a device. ValueError for a prompt that was not encoded."""
        missing = [prompt for prompt in prompts if prompt not in self.places]
        if missing:
            raise ValueError(
                f"this pipeline's text encoders are gone, and {missing[0][:80]!r} was not encoded before: name it in encode_ahead"
            )
        rows = [self.places[prompt] for prompt in prompts]
        return self.embeds[rows].to(device), self.pooled[rows].to(device)


@torch.no_grad()
def _encode(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> tuple[Tensor, Tensor]:
    options = {"do_classifier_free_guidance": False, "max_sequence_length": t5_length(pipe)}
    embeds, _, pooled, _ = pipe.encode_prompt(prompts, prompts, prompts, **options)
    return embeds, pooled


def encoded(pipe: DiffusionPipeline) -> EncodedPrompts | None:
    """What `encode_ahead` left in the pipeline."""
    return getattr(pipe, "encoded_prompts", None)


def encode(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> tuple[Tensor, Tensor]:
    """Prompt embeddings (b, n, d) and pooled (b, p) on the pipeline's device, without a graph. ValueError for no prompt, for one text in
    place of a list, and for a prompt that `encode_ahead` was not given."""
    prompts = as_texts(prompts)
    return (encoded(pipe) or EncodedPrompts(pipe, prompts)).of(prompts, pipe.device)


def encode_ahead(pipe: StableDiffusion3Pipeline, prompts: list[str]) -> StableDiffusion3Pipeline:
    """`pipe` without its text encoders, 11 GB of Stable Diffusion 3.5's in 16 bits; from now on it draws and is tuned with these prompts
    alone, and with the empty one, which guidance needs."""
    pipe.encoded_prompts = EncodedPrompts(pipe, [*as_texts(prompts), ""])
    pipe.register_modules(**{name: None for name in TEXT_ENCODERS if hasattr(pipe, name)})
    return pipe


def prompt_arguments(pipe: DiffusionPipeline, prompts: list[str], guidance: float) -> dict:
    """What a call of the pipeline takes: the prompts, or what was encoded of them."""
    if encoded(pipe) is None:
        return {"prompt": prompts}
    names = ("prompt_embeds", "pooled_prompt_embeds")
    arguments = dict(zip(names, encode(pipe, prompts)))
    if guidance > 1:
        arguments |= dict(zip((f"negative_{name}" for name in names), encode(pipe, [""] * len(prompts))))
    return arguments
