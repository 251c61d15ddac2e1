"""Linear maps that follow one another are one."""

import torch
from torch import Tensor, nn


@torch.no_grad()
def hp_head(layers: nn.Sequential) -> nn.Sequential:
    """A head of linear layers without a non-linearity between, (b, n) -> (b, m), as one linear layer, in eval mode; multiplied
    out in float64. Raises ValueError for any layer but Linear, Dropout and Identity."""
    weight, bias = None, None
    for layer in layers:
        if not isinstance(layer, (nn.Linear, nn.Dropout, nn.Identity)):
            raise ValueError(f"a head with a {type(layer).__name__} is not one linear map; only Linear and Dropout layers fold")
        if isinstance(layer, nn.Linear):
            w, b = layer.weight.double(), layer.weight.new_zeros(len(layer.weight)) if layer.bias is None else layer.bias
            weight, bias = (w, b.double()) if weight is None else (w @ weight, w @ bias + b.double())
    if weight is None:
        raise ValueError("a head without a Linear layer has nothing to fold")
    like = next(layers.parameters())
    folded = nn.Linear(weight.shape[1], len(weight), device=like.device, dtype=like.dtype)
    folded.weight.copy_(weight)
    folded.bias.copy_(bias)
    return nn.Sequential(folded).requires_grad_(False).eval()


@torch.no_grad()
def fold_normalisation(conv: nn.Conv2d, mean, std) -> nn.Conv2d:
    """A patch embedding of (x - mean) / std as one of x, x in [0, 1]: weight / std, and a bias. No padding allowed: what lies
    outside the picture would have to be `mean`; nor dilation or groups, which no patch embedding has. ValueError for these."""
    if conv.padding not in (0, (0, 0), "valid") or conv.dilation != (1, 1) or conv.groups != 1:
        raise ValueError(f"a convolution with padding {conv.padding}, dilation {conv.dilation}, groups {conv.groups} does not fold")
    mean, std = (torch.tensor(v, dtype=torch.float64, device=conv.weight.device)[:, None, None] for v in (mean, std))
    folded = nn.Conv2d(
        conv.in_channels, conv.out_channels, conv.kernel_size, conv.stride, device=conv.weight.device, dtype=conv.weight.dtype
    )
    folded.weight.copy_(weight := conv.weight / std)
    folded.bias.copy_((0 if conv.bias is None else conv.bias) - _sum(weight * mean))
    return folded.requires_grad_(False).eval()


def _sum(weight: Tensor) -> Tensor:
    return weight.flatten(1).sum(1)
