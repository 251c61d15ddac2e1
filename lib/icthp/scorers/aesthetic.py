"""LAION's aesthetic predictor: linear layers on a CLIP image feature, and the files of its released heads."""

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

    def __init__(self, clip: ClipScorer, head: nn.Module):
        super().__init__()
        width = next(layer.in_features for layer in head.modules() if isinstance(layer, nn.Linear))
        if clip.architecture and width != clip.architecture["embed_dim"]:
            own = clip.architecture["embed_dim"]
            raise ValueError(f"this head reads {width} features and the CLIP gives {own}: each head is for one CLIP, which its file names")
        self.clip = clip
        self.head = head

    @property
    def preprocessing(self) -> Preprocessing:
        return self.clip.preprocessing

    def forward(self, pixels: Tensor, prompts=None) -> Tensor:
        return apply_head(self.head, self.clip.image_features(pixels)).squeeze(-1)


def aesthetic_head(path) -> nn.Module:
    """One of LAION's released heads (.pth, read with weights_only), one linear layer or the MLP without non-linearities, as one linear
    layer. ValueError for a file without linear layers and their biases."""
    state = read_state(path)
    names = [k for k, v in state.items() if k.endswith("weight") and v.ndim == 2]
    if not names or any(k.replace("weight", "bias") not in state for k in names):
        raise ValueError(f"{path} holds no linear layers with their biases: name one of LAION's heads")
    layers = [nn.Linear(*reversed(state[k].shape)) for k in names]
    for layer, key in zip(layers, names):
        layer.weight.data = state[key].float()
        layer.bias.data = state[key.replace("weight", "bias")].float()
    return kernels.fold_linear(nn.Sequential(*layers))
