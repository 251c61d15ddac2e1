"""One interface for every scorer: score(pixels in [0, 1], prompts) -> Tensor (b,), differentiable in the pixels."""

import open_clip

from icthp import preprocessing
from icthp.scorers import imagereward
from icthp.scorers.aesthetic import AestheticScorer, aesthetic_head
from icthp.scorers.base import Scorer
from icthp.scorers.clip import load_clip
from icthp.scorers.combined import IctHpScorer
from icthp.scorers.hp import load_hp
from icthp.scorers.imagereward import ImageRewardScorer
from icthp.scorers.jpeg import JpegScorer
from icthp.scorers.states import FILES, folder_of, weights_in

SOURCES = {"clip": "local-dir:data/hub/clip", "pickscore": "local-dir:data/hub/pickscore", "ict": "local-dir:models/ict",
           "hp": "models/hp", "icthp": "models", "hpsv2": None, "imagereward": None,
           "aesthetic": None, "jpeg": ""}  # fmt: skip
STAGE_OF = {"clip": "`dvc pull` fetches data/", "pickscore": "`dvc pull` fetches data/",
           "ict": "`dvc repro train_ict` makes it", "hp": "`dvc repro train_hp` makes it"}  # fmt: skip


def load(name: str, source: str | None = None, *, device=None, dtype=None) -> Scorer:
    """A scorer by name, frozen, in eval mode: clip, ict, hp, icthp, pickscore, hpsv2, imagereward, aesthetic, jpeg.

    source: see weights.read_clip for clip, ict, pickscore, hpsv2; a folder or "hf-hub:8y/HP" for hp; "ICT,HP" or their parent
    for icthp; imagereward.load's folder; "CLIP,head.pth" for aesthetic; "512" for jpeg at 512 x 512 pixels. None: the micro
    scale's folders. Raises ValueError for an unknown name or weights that do not fit, FileNotFoundError where a folder is missing."""
    if name not in SOURCES:
        raise ValueError(f"no scorer is called {name!r}; there are {', '.join(SOURCES)}")
    source = SOURCES[name] if source is None else source
    if source is None:
        raise ValueError(f"{name} has no weights at the micro scale: pass source=, e.g. an open_clip folder")
    parts = _parts(name, source)
    for made, folder in parts:
        if made != "head" and "hf-hub:" not in folder and ("local-dir:" in folder or made in OWN) and not _holds_weights(made, folder):
            remedy = STAGE_OF.get(made, "name the publisher's folder")
            raise FileNotFoundError(f"{folder} has no weights: {remedy}, looked for {_looked_for(made)}")
    scorer = _build(name, [folder for _, folder in parts]).requires_grad_(False).eval().to(device=device, dtype=dtype)
    scorer.name = name
    return scorer


OWN = {"hp": ("hp.safetensors", "hp_scorer/mlp_pytorch_model.bin"), "imagereward": ("ImageReward.pt",)}


def _holds_weights(name: str, source: str) -> bool:
    """Is a folder there and finished? One that a killed training left holds only its checkpoint."""
    folder = folder_of(source)
    return any((folder / file).exists() for file in OWN[name]) if name in OWN else weights_in(folder) is not None


def _looked_for(name: str) -> str:
    return " or ".join(OWN.get(name, FILES[:2])) + (" and the like" if name not in OWN else "")


def _parts(name: str, source: str) -> list[tuple[str, str]]:
    """(scorer, its source) of each model that a scorer is made of."""
    if name == "icthp":
        ict, hp = source.split(",") if "," in source else (f"{source}/ict", f"{source}/hp")
        return [("ict", ict if ":" in ict else f"local-dir:{ict}"), ("hp", hp)]
    if name == "aesthetic":
        if source.count(",") != 1:
            raise ValueError(f'the source of aesthetic is "CLIP,head.pth", not {source!r}')
        return list(zip(("clip", "head"), source.split(",")))
    return [(name, source)]


def _build(name: str, sources: list[str]) -> Scorer:
    if name == "jpeg":
        if sources[0] and not sources[0].isdecimal():
            raise ValueError(f'the source of jpeg is a side in pixels, as "512", or "" for pictures as they are, not {sources[0]!r}')
        return JpegScorer(int(sources[0]) if sources[0] else None)
    if name == "hp":
        return load_hp(*sources).fold()
    if name == "icthp":
        return IctHpScorer(load_clip(sources[0]), load_hp(sources[1]).fold())
    if name == "aesthetic":
        return AestheticScorer(load_clip(sources[0]), aesthetic_head(sources[1]))
    if name == "imagereward":
        return ImageRewardScorer(*imagereward.load(*sources))
    scorer = load_clip(*sources, scaled=name == "pickscore")
    if name == "hpsv2":  # the publisher's rule, whatever the weights' own architecture does
        open_clip.set_model_preprocess_cfg(scorer.model, preprocessing.to_open_clip(preprocessing.from_hps(scorer.preprocessing)))
    return scorer
