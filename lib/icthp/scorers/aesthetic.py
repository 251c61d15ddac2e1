"""scorers.aesthetic."""

from torch import Tensor, nn

from icthp import kernels
from icthp.preprocessing import Preprocessing
from icthp.scorers.base import Scorer, apply_head
from icthp.scorers.clip import ClipScorer
from icthp.scorers.states import read_state


class AestheticScorer(Scorer):
    """LAION's aesthetic predictor: linear layers on a unit CLIP ViT-L/14 image feature, about 1 to 10."""

    needs_prompt = False
    score_scale = "about 1 to 10"

    def __init__(self, clip: ClipScorer, head_: nn.Module):
        super().__init__()
        self.clip, self.head = clip, head_

    @property
    def preprocessing(self) -> Preprocessing:
        return self.clip.preprocessing

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        return apply_head(self.head, self.clip.image_features(pixels)).squeeze(-1)


def aesthetic_head(path) -> nn.Module:
    """LAION's released heads (.pth, read with weights_only): one linear layer, or the MLP without non-linearities."""
    state = read_state(path)
    names = [k for k, v in state.items() if k.endswith("weight") and v.ndim == 2]
    if not names or any(k.replace("weight", "bias") not in state for k in names):
        raise ValueError(f"{path} holds no linear layers with their biases: name one of LAION's heads")
    layers = [nn.Linear(*reversed(state[k].shape)) for k in names]
    for layer, key in zip(layers, names):
        layer.weight.data, layer.bias.data = state[key].float(), state[key.replace("weight", "bias")].float()
    return kernels.fold_linear(nn.Sequential(*layers))
