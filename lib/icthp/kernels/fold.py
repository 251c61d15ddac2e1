"""Linear maps that follow one another are one."""

import torch
from torch import nn


@torch.no_grad()
def fold_linear(layers: nn.Sequential) -> nn.Sequential:
    """A head of linear layers without a non-linearity between, (b, n) -> (b, m), as one linear layer, in eval mode; multiplied
    out in float64. Raises ValueError for any layer but Linear, Dropout and Identity, and for a head without a Linear layer."""
    weight = None
    bias = None
    for layer in layers:
        if not isinstance(layer, (nn.Linear, nn.Dropout, nn.Identity)):
            raise ValueError(f"a head with a {type(layer).__name__} is not one linear map; only Linear and Dropout layers fold")
        if isinstance(layer, nn.Linear):
            w = layer.weight.double()
            b = w.new_zeros(len(w)) if layer.bias is None else layer.bias.double()
            weight, bias = (w, b) if weight is None else (w @ weight, w @ bias + b)
    if weight is None:
        raise ValueError("a head without a Linear layer has nothing to fold")
    like = next(layers.parameters())
    folded = nn.Linear(weight.shape[1], len(weight), device=like.device, dtype=like.dtype)
    folded.weight.copy_(weight)
    folded.bias.copy_(bias)
    return nn.Sequential(folded).requires_grad_(False).eval()
