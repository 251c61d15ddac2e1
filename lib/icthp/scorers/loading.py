"""`load`: a scorer by its name, from the project's own folders, a folder, the Hub, or a class of one's own."""

import copy
from pathlib import Path

from icthp.custom import is_custom
from icthp.project import project_root
from icthp.scorers.aesthetic import AestheticScorer, aesthetic_head
from icthp.scorers.aesthetic_v25 import load_aesthetic_v25
from icthp.scorers.base import Scorer
from icthp.scorers.clip import load_clip, load_hps
from icthp.scorers.clip_iqa import load_clip_iqa
from icthp.scorers.combined import IctHpScorer
from icthp.scorers.custom import load_custom
from icthp.scorers.cyclereward import load_cyclereward
from icthp.scorers.endpoint import load_unified_reward, load_vision_reward
from icthp.scorers.fga_blip2 import load_fga_blip2
from icthp.scorers.hp import RELEASED_HEAD, load_hp
from icthp.scorers.hps import load_hps_v1
from icthp.scorers.hpsv3 import load_hpsv3
from icthp.scorers.imagereward import load_imagereward
from icthp.scorers.jpeg import make_jpeg
from icthp.scorers.mps import load_mps
from icthp.scorers.siglip import load_siglip
from icthp.scorers.states import FILES, folder_of, weights_in
from icthp.scorers.vqascore import load_vqascore
from icthp.scorers.yes_no import load_yes_no

PUBLISHED = {"imagereward": load_imagereward, "cyclereward": load_cyclereward, "fga_blip2": load_fga_blip2, "hps": load_hps_v1,
             "hpsv2": load_hps, "hpsv3": load_hpsv3, "mps": load_mps, "siglip": load_siglip, "clip_iqa": load_clip_iqa,
             "aesthetic_v25": load_aesthetic_v25, "vqascore": load_vqascore, "yes_no": load_yes_no, "unifiedreward": load_unified_reward,
             "visionreward": load_vision_reward}  # fmt: skip
SOURCES = {"clip": "local-dir:data/hub/clip", "pickscore": "local-dir:data/hub/pickscore", "ict": "local-dir:models/ict",
           "hp": "models/hp", "icthp": "models", "aesthetic": None, "jpeg": ""} | dict.fromkeys(PUBLISHED)  # fmt: skip
STAGE_OF = {"clip": "`dvc pull` fetches data/", "pickscore": "`dvc pull` fetches data/",
            "ict": "`dvc repro train_ict` makes it", "hp": "`dvc repro train_hp` makes it"}  # fmt: skip
OWN_FILES = {"hp": ("hp.safetensors", RELEASED_HEAD), "imagereward": ("ImageReward.pt",)}  # others have a CLIP's


def load_all(sources: dict[str, str | None], *, device=None, dtype=None) -> dict[str, Scorer]:
    """Scorers by name, each from its source, as `load` loads it. What two of them read from one source is in memory once: ICT-HP's parts
    are the ict and hp beside it, an aesthetic head sits on the clip beside it."""
    towers = {}
    return {name: _load(name, source, towers).to(device=device, dtype=dtype) for name, source in sources.items()}


def load(name: str, source: str | None = None, *, device=None, dtype=None) -> Scorer:
    """A scorer by name, frozen, in eval mode: clip, ict, hp, icthp, pickscore, aesthetic, jpeg, one of PUBLISHED, or "file.py:Class", a
    subclass of Scorer in a file of the project.

    source: see checkpoints.read_clip for clip, ict, pickscore, hpsv2, clip_iqa; a folder or "hf-hub:8y/HP" for hp; "ICT,HP" or their
    parent for icthp; "CLIP,head.pth" for aesthetic; "512" for jpeg at 512 x 512 pixels; the constructor's argument for a class; for the
    others of PUBLISHED a folder or "hf-hub:org/repo" in their publisher's layout, which their loader's docstring gives. None: the folders
    of the project around the working directory. Raises ValueError for an
    unknown name or weights that do not fit, FileNotFoundError for a missing folder."""
    return _load(name, source, {}).to(device=device, dtype=dtype)


def _load(name: str, source: str | None, towers: dict) -> Scorer:
    """`towers`: what was read before, by its kind and source."""
    if is_custom(name):
        scorer = load_custom(name, source)
        name = type(scorer).__name__
    elif isinstance(name, str) and name in SOURCES:
        scorer = _load_named(name, source, towers)
    else:
        raise ValueError(f"no scorer is called {name!r}; there are {', '.join(SOURCES)}, and your own as file.py:Class")
    scorer.name = name
    return scorer.requires_grad_(False).eval()


def _load_named(name: str, source: str | None, towers: dict) -> Scorer:
    root = project_root(Path.cwd())
    parts = _parts(name, source) if source is not None else _default_parts(name, root)
    for part, folder in parts:
        if part == "head" or _holds_weights(part, folder):
            continue
        if source is None and root is None:
            raise FileNotFoundError(f"{name} has no default weights outside of a project: pass source=, their folder or hf-hub:org/repo")
        remedy = STAGE_OF.get(part, "name the publisher's folder")
        raise FileNotFoundError(f"{folder} has no weights: {remedy}, looked for {_looked_for(part)}")
    return _build(name, [folder for _, folder in parts], towers)


def _default_parts(name: str, root: Path | None) -> list[tuple[str, str]]:
    """The parts of SOURCES, from the project's root if that is not the working directory."""
    if SOURCES[name] is None:
        raise ValueError(f"{name} has no weights at the micro scale: pass source=, e.g. an open_clip folder")
    parts = _parts(name, SOURCES[name])
    if name == "jpeg" or root in (None, Path.cwd()):
        return parts
    return [(part, _below(root, folder)) for part, folder in parts]


def _below(root: Path, folder: str) -> str:
    prefix = "local-dir:" if folder.startswith("local-dir:") else ""
    return f"{prefix}{root / folder.removeprefix(prefix)}"


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


def _holds_weights(part: str, source: str) -> bool:
    """Is a folder there and finished? One of a killed training has only its checkpoint. True for what is not a local folder."""
    if "hf-hub:" in source or not ("local-dir:" in source or part in OWN_FILES):
        return True
    folder = folder_of(source)
    return any((folder / file).exists() for file in OWN_FILES[part]) if part in OWN_FILES else weights_in(folder) is not None


def _looked_for(part: str) -> str:
    return " or ".join(OWN_FILES[part]) if part in OWN_FILES else " or ".join(FILES[:2]) + " and the like"


def _build(name: str, sources: list[str], towers: dict) -> Scorer:
    def tower(load_tower, source: str) -> Scorer:
        """Read, or, as an object of its own with the same weights, what was read of this source before."""
        key = (load_tower, source)
        if key not in towers:
            towers[key] = load_tower(source)
        return copy.copy(towers[key])

    if name == "jpeg":
        return make_jpeg(*sources)
    if name == "hp":
        return tower(load_hp, *sources).fold()
    if name == "icthp":
        return IctHpScorer(tower(load_clip, sources[0]), tower(load_hp, sources[1]).fold())
    if name == "aesthetic":
        return AestheticScorer(tower(load_clip, sources[0]), aesthetic_head(sources[1]))
    if name in PUBLISHED:
        return PUBLISHED[name](*sources)
    if name == "pickscore":
        return load_clip(*sources, scaled=True)
    return tower(load_clip, *sources)
