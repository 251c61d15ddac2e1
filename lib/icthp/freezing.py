"""Partly frozen CLIPs: the layers of their towers, lowest first, and which of them train."""

from open_clip.transformer import VisionTransformer
from torch import nn


def image_layers(clip) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """An open_clip CLIP's image layers, lowest first, the last norm among them; and the parameters below them. ValueError for an image
    tower that is no ViT."""
    visual = clip.visual
    if not isinstance(visual, VisionTransformer):
        raise ValueError(f"only a CLIP with a ViT can be trained, not one with a {type(visual).__name__}")
    embeddings = [visual.conv1.weight, visual.class_embedding, visual.positional_embedding, *visual.ln_pre.parameters()]
    return [*visual.transformer.resblocks, visual.ln_post], embeddings


def text_layers(clip) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """The same for its text."""
    return [*clip.transformer.resblocks, clip.ln_final], [clip.token_embedding.weight, clip.positional_embedding]


def freeze(layers: list[nn.Module], embeddings: list[nn.Parameter], fraction: float, train_embeddings: bool = False) -> None:
    """Freeze the lowest int(fraction * layers) of them and the embeddings below, so that no gradient is computed there. train_embeddings:
    the embeddings train all the same, as released, which runs the backward pass through all the frozen layers. ValueError for a fraction
    outside [0, 1]."""
    if not 0 <= fraction <= 1:
        raise ValueError(f"frozen_fraction must lie in [0, 1], not {fraction}")
    count = int(fraction * len(layers))
    nn.ModuleList(layers[:count]).requires_grad_(False)
    for parameter in embeddings:
        parameter.requires_grad_(train_embeddings or not count)
