"""The style of all figures, colour-blind safe: what a scorer, generator or way to tune is called, its colour and marker."""

import matplotlib as mpl
import seaborn as sns

COLOURS = dict(zip(("clip", "pickscore", "ict", "hp", "icthp", "base", "jpeg"), sns.color_palette("colorblind", 7).as_hex()))
COLOURS |= {"ict_text": "0.45", "imagereward": "#56b4e9", "hpsv2": "#999933", "aesthetic": "#882255"}
MARKERS = dict(zip(COLOURS, "osD^vXP*<>h"))  # so that lines stay apart in grey
NAMES = {"clip": "CLIP", "pickscore": "PickScore", "ict": "ICT", "hp": "HP", "icthp": "ICT-HP", "base": "untuned", "jpeg": "JPEG",
         "imagereward": "ImageReward", "hpsv2": "HPS v2", "aesthetic": "Aesthetic", "random": "random",
         "ict_text": "ICT's text tower", "ict_text_alone": "ICT's tower alone",
         "first_alone": "first encoder alone", "second_alone": "second encoder alone"}  # fmt: skip
NAMES |= {name: name.upper() for name in ("srpo", "rsm", "dpo", "ipo", "dmpo", "sdpo", "npo", "pso", "tpo", "dcpo", "crd", "kto", "rwr",
                                          "awm", "dgpo", "nft", "spo")}  # fmt: skip
NAMES |= {"draft_1": "DRaFT-1", "draft_4": "DRaFT-K", "draft_4_anchored": "DRaFT-K, anchored", "draft_lv": "DRaFT-LV", "refl": "ReFL",
          "image_refl": "ImageReFL", "drtune": "DRTune", "flowbp_sparse": "FlowBP-Sparse", "smpo": "SmPO", "rank_dpo": "RankDPO",
          "mapo": "MaPO", "best_of_n": "best of n", "flow_grpo": "Flow-GRPO", "dance_grpo": "DanceGRPO", "cps_grpo": "GRPO, CPS",
          "pref_grpo": "Pref-GRPO", "grpo_guard": "GRPO-Guard", "pso_online": "PSO online", "step_1_of_4": "step 1 of 4 alone",
          "step_2_of_4": "step 2 of 4 alone", "step_3_of_4": "step 3 of 4 alone"}  # of ways to tune  # fmt: skip


def label(name: str) -> str:
    """What a scorer, generator or way to tune is called in figures; of a class in a file, FILE.py:CLASS, the class."""
    return NAMES.get(name, name.rpartition(":")[2])


def colour(name: str) -> str:
    return COLOURS.get(name, "0.3")


def marker(name: str) -> str:
    return MARKERS.get(name, ".")


def style() -> None:
    """Set matplotlib's defaults: legible at 600 px, no ink that says nothing."""
    sns.set_theme(context="notebook", style="whitegrid", palette="colorblind")
    mpl.rcParams.update({"figure.dpi": 110, "savefig.dpi": 150, "axes.spines.top": False, "axes.spines.right": False,
                         "axes.titlesize": 11, "axes.labelsize": 10,
                         "legend.frameon": False, "image.interpolation": "nearest"})  # fmt: skip
