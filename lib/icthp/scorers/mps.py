"""MPS: its score, its cross-attention, and its weights in RE-N-Y/mpsv1's layout or under the names of the original module."""

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor, nn
from transformers import CLIPConfig, CLIPModel

from icthp import kernels
from icthp.files import read_json
from icthp.losses import no_autocast, upcast
from icthp.preprocessing import Preprocessing, from_side
from icthp.scorers.base import Scorer, is_longer
from icthp.scorers.states import fill, folder_of, read_state, renamed, under, weights_in
from icthp.scorers.tokenizers import to_transformers

# The condition and the threshold of Kwai-Kolors/MPS@eval_overall_mps_on_hpdv2.py; the training code has another threshold, 0.01.
CONDITION = ("light, color, clarity, tone, style, ambiance, artistry, shape, face, hair, hands, limbs, structure, instance, texture, "
             "quantity, attributes, position, number, location, word, things.")  # fmt: skip
THRESHOLD = 0.3
VIT_H = {"projection_dim": 1024,  # laion/CLIP-ViT-H-14-laion2B-s32B-b79K@config.json
         "vision_config": {"hidden_size": 1280, "intermediate_size": 5120, "num_hidden_layers": 32, "num_attention_heads": 16,
                           "patch_size": 14, "hidden_act": "gelu"},
         "text_config": {"hidden_size": 1024, "intermediate_size": 4096, "num_hidden_layers": 24, "num_attention_heads": 16,
                         "hidden_act": "gelu"}}  # fmt: skip


class MpsScorer(Scorer):
    """MPS (arXiv 2405.14705): CLIP's logit scale times the cosine of the prompt's end token and the image's class token, after the image
    has attended to the prompt: to those tokens whose similarity to the condition is more than 0.3 of the prompt's largest
    (Kwai-Kolors/MPS@eval_overall_mps_on_hpdv2.py; one prompt at a time there, so the largest is each prompt's own)."""

    score_scale = "logit-scaled cosine"

    def __init__(self, clip: CLIPModel, cross_model: "CrossModel", tokenizer):
        super().__init__()
        self.clip = clip
        self.cross_model = cross_model
        self.tokenizer = tokenizer
        self.length = clip.config.text_config.max_position_embeddings

    @property
    def preprocessing(self) -> Preprocessing:
        """CLIP's own, as transformers' image processor does it."""
        mean, std = open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD
        return from_side(self.clip.config.vision_config.image_size)._replace(mean=mean, std=std, like="transformers")

    def is_truncated(self, prompts: list[str]) -> Tensor:
        return is_longer(self.tokenizer, prompts, self.length)

    def forward(self, pixels: Tensor, prompts: list[str]) -> Tensor:
        pixels = kernels.preprocess(pixels, self.preprocessing).to(self.clip.logit_scale.dtype)
        patches = self.clip.visual_projection(self.clip.vision_model(pixel_values=pixels).last_hidden_state)
        tokens, ends = self._text_states(prompts)
        image = upcast(self.cross_model(patches, tokens, self._related(tokens))[:, 0])
        text = upcast(tokens.take_along_dim(ends[:, None, None], 1)[:, 0])
        return F.cosine_similarity(image, text, dim=-1) * upcast(self.clip.logit_scale).exp()

    def _text_states(self, prompts: list[str]) -> tuple[Tensor, Tensor]:
        """(b, n, d) features of all n tokens, padding included, and (b,) where each text ends."""
        ids = self.tokenizer(prompts, padding="max_length", truncation=True, max_length=self.length, return_tensors="pt").input_ids
        ids = ids.to(self.device)
        return self.clip.text_projection(self.clip.text_model(input_ids=ids).last_hidden_state), ids.argmax(-1)

    def _related(self, tokens: Tensor) -> Tensor:
        """(b, n) bool: does the image attend to a token?"""
        condition = self._text_states([CONDITION])[0][0]
        with no_autocast(tokens.device):
            similarity = (upcast(tokens) @ upcast(condition).T).amax(-1)
        return similarity / similarity.amax(-1, keepdim=True) > THRESHOLD


class CrossModel(nn.Module):
    """Layers in which x attends to a text, then to itself with rotary positions; the heads of its queries share one key and one value,
    and a gated linear layer runs beside each attention (Kwai-Kolors/MPS@trainer/models/cross_modeling.py)."""

    def __init__(self, width: int, depth: int = 4, heads: int = 16, head_width: int = 64):
        super().__init__()
        queries, hidden = heads * head_width, 4 * width
        self.heads = heads
        self.widths = (queries, head_width, head_width, 2 * hidden)
        cross = {"to_q": (width, queries), "to_kv": (width, 2 * head_width), "to_out": (queries, width),
                 "ff_0": (width, 2 * hidden), "ff_2": (hidden, width)}  # fmt: skip
        own = {"fused_attn_ff_proj": (width, sum(self.widths)), "attn_out": (queries, width), "ff_out_1": (hidden, width)}
        self.layers = nn.ModuleList(nn.ModuleList([_after_norm(width, cross), _after_norm(width, own)]) for _ in range(depth))

    def forward(self, x: Tensor, text: Tensor, mask: Tensor) -> Tensor:
        """x (b, n, width), text (b, m, width), mask (b, m) bool, True where x attends -> (b, n, width)."""
        for cross, own in self.layers:
            y = cross["norm"](x)
            heads = self._attend(cross["to_q"](y), *cross["to_kv"](text).chunk(2, -1), mask[:, None, None])
            x = x + cross["to_out"](heads) + cross["ff_2"](_gate(cross["ff_0"](y)))
            q, k, v, hidden = own["fused_attn_ff_proj"](own["norm"](x)).split(self.widths, -1)
            x = x + own["attn_out"](self._attend(q, k, v)) + own["ff_out_1"](_gate(hidden))
        return x

    def _attend(self, q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None = None) -> Tensor:
        """q (b, n, all heads); k, v (b, m, head); with rotary positions if there is no mask -> (b, n, all heads)."""
        q = q.unflatten(-1, (self.heads, -1)).transpose(1, 2)
        q, k = (q, k) if mask is not None else (_rotate(q), _rotate(k))
        k, v = (part[:, None].expand(-1, self.heads, -1, -1) for part in (k, v))
        return F.scaled_dot_product_attention(q, k, v, attn_mask=mask).transpose(1, 2).flatten(2)


def _after_norm(width: int, linear: dict[str, tuple[int, int]]) -> nn.ModuleDict:
    layers = {name: nn.Linear(n, m, bias=False) for name, (n, m) in linear.items()}
    return nn.ModuleDict({"norm": nn.LayerNorm(width)} | layers)


def _gate(x: Tensor) -> Tensor:
    x, gate = x.chunk(2, -1)
    return x * F.silu(gate)


def _rotate(x: Tensor) -> Tensor:
    """Rotary positions (arXiv 2104.09864) of x (..., n, d); angles at least in float32: bfloat16 has no odd number beyond 256."""
    n, d = x.shape[-2:]
    options = {"device": x.device, "dtype": upcast(x).dtype}
    angles = torch.arange(n, **options)[:, None] * 10000 ** (torch.arange(0, d, 2, **options) / -d)
    cos, sin = angles.cos().to(x.dtype), angles.sin().to(x.dtype)
    a, b = x.chunk(2, -1)
    return torch.cat([a * cos - b * sin, b * cos + a * sin], -1)


def load_mps(source: str) -> MpsScorer:
    """A folder or "hf-hub:org/repo" with model.safetensors, or a file of weights, under RE-N-Y/mpsv1's names (mps.model.*,
    mps.cross_model.*) or those of the original module (model.*, cross_model.*); a config.json of a CLIP beside it says which, else it is
    ViT-H/14. The official file is a pickled module, which is refused. FileNotFoundError, or ValueError for weights that do not fit."""
    path = folder_of(source)
    file = path if path.is_file() else weights_in(path) or path / "model.safetensors"
    state = {name.removeprefix("mps."): value for name, value in read_state(file).items() if not name.endswith("inv_freq")}
    beside = file.with_name("config.json")
    config = CLIPConfig(**(VIT_H | (read_json(beside) if beside.is_file() else {})))
    cross = renamed(under("cross_model.", state), ((".fn.", "."), ("ff.", "ff_"), ("ff_out.", "ff_out_")))
    clip = fill(CLIPModel(config), under("model.", state), file)
    tokenizer = to_transformers(open_clip.SimpleTokenizer(context_length=config.text_config.max_position_embeddings))
    return MpsScorer(clip, fill(CrossModel(config.projection_dim), cross, file), tokenizer).requires_grad_(False).eval()
