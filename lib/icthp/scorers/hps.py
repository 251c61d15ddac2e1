"""HPS v1, which is a CLIP tuned on human choices; `clip.load_hps` reads HPS v2."""

from pathlib import Path

import open_clip

from icthp.scorers.clip import ClipScorer, load_clip

ARCHITECTURE = "ViT-L-14-quickgelu"  # OpenAI's


def load_hps_v1(source: str) -> ClipScorer:
    """HPS v1 (arXiv 2303.14420): the cosine of OpenAI's ViT-L/14 with CLIP's own preprocessing (tgxs002/align_sd@evaluate_hps.py).

    source: the released torch file, whose "state_dict" has OpenAI's names, which open_clip has too; "ARCHITECTURE/FILE" for another
    architecture; or any that checkpoints.read_clip takes. FileNotFoundError, or ValueError for weights that do not fit."""
    is_file = ":" not in source and not Path(source).is_dir() and source.partition("/")[0] not in open_clip.list_models()
    return load_clip(f"{ARCHITECTURE}/{source}" if is_file else source)
