"""The information decomposition I(v) = I(v;t) + I(v|t) and the score that a shared embedding space can give it."""

import numpy as np
import torch
from torch import Tensor


def predicted_score(a, b, t):
    """f = a / sqrt(t (a + b)): the paper's CLIP score of an image with a = I(v;t) bits shared with a text of t = I(t)
    bits and b = I(v|t) bits of its own. Arrays or tensors of one shape; in [0, 1] where 0 <= a <= t."""
    return a / (t * (a + b)) ** 0.5


def score_falls(a, b, da, db):
    """Does f fall along a step (da, db)? Exactly iff db > da (1 + 2 b / a)."""
    return db > da * (1 + 2 * b / a)


def gaussian_information(x: Tensor, y: Tensor) -> float:
    """Mutual information in bits of samples x (n, p) and y (n, q) under a Gaussian model, from log-determinants:
    (log|Sx| + log|Sy| - log|Sxy|) / 2 ln 2. Raises ValueError where n does not exceed p + q."""
    joint = torch.cat([x, y], 1).double()
    if len(joint) <= joint.shape[1] + 1:
        raise ValueError(f"{len(joint)} samples cannot give the covariance of {joint.shape[1]} dimensions")
    half = lambda z: torch.linalg.slogdet(torch.cov(z.double().T).reshape(z.shape[1], z.shape[1]))[1]
    return float((half(x) + half(y) - half(joint)) / (2 * np.log(2)))
