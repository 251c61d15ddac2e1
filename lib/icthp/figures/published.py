"""Numbers that the paper publishes: accuracies, GenEval, JPEG size and aesthetics, votes. They are of its own scale."""

import pandas as pd

PAIRS = {"i2_i1": "I2 > I1 (votes)", "i3_i2": "I3 > I2 (by construction)", "i3_i1": "I3 > I1 (by construction)"}
_ACCURACY = {"clip": [64.29, 52.80, 63.79], "imagereward": [64.58, 58.02, 68.84], "pickscore": [74.80, 75.37, 86.94],
             "ict": [64.65, 100, 100], "hp": [64.97, 100, 100], "icthp": [66.42, 100, 100]}  # fmt: skip
_GENEVAL_TASKS = ["single_object", "counting", "colors", "position", "mean"]  # of two_object and color_attr only the sum is known
_GENEVAL = {
    "base": [0.99, 0.69, 0.80, 0.25, 0.69],
    "pickscore": [0.99, 0.67, 0.74, 0.24, 0.66],
    "imagereward": [0.99, 0.68, 0.80, 0.28, 0.70],
    "ict": [0.98, 0.70, 0.81, 0.31, 0.71],
    "icthp": [0.99, 0.68, 0.79, 0.28, 0.70],
    "clip": [0.38, 0.06, 0.26, 0.01, 0.13],
}
_SIZES = {"SD3.5-Large": (374.80, 6.307), "FLUX.1-dev": (270.58, 6.436), "base": (313.10, 6.293), "hp": (334.86, 6.448),
          "icthp": (330.23, 6.300)}  # fmt: skip
WIN_RATES = {"hp": 0.709}  # by people, over the untuned generator

ACCURACY = pd.DataFrame(_ACCURACY, index=list(PAIRS)).T / 100  # scorers x pairs
GENEVAL = pd.DataFrame(_GENEVAL, index=_GENEVAL_TASKS).T  # generators x tasks, of SD3.5-Large-Turbo
SIZES = pd.DataFrame(_SIZES, index=["jpeg_kb", "aesthetic"]).T  # generators x (kB at quality 95, aesthetic score), at 1024 pixels
