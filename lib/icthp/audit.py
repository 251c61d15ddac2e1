"""What predicts the better picture of a pair besides quality? Accuracies of classifiers that see one low-level cue only."""

import io

import numpy as np
from PIL import Image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

CUES = ("format", "size", "colour", "edges", "spectrum")


def cues(content: bytes) -> dict[str, np.ndarray]:
    """Low-level cues of one picture file: container format, pixel count and bytes, colour moments, edge strength,
    radial power spectrum (8 bands, log)."""
    image = Image.open(io.BytesIO(content))
    pixels = np.asarray(image.convert("RGB"), dtype=np.float64) / 255
    grey = pixels.mean(2)
    power = np.abs(np.fft.rfft2(grey - grey.mean())) ** 2
    radius = np.hypot(np.fft.fftfreq(grey.shape[0])[:, None], np.fft.rfftfreq(grey.shape[1])[None])
    bands = [power[(radius >= lo) & (radius < lo + 1 / 16)].mean() for lo in np.arange(8) / 16]
    dy, dx = np.abs(np.diff(grey, axis=0)), np.abs(np.diff(grey, axis=1))
    return {
        "format": np.array([image.format == "JPEG", image.format == "PNG"], float),
        "size": np.array([*image.size, np.log(len(content))]),
        "colour": np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1))]),
        "edges": np.array([dx.mean(), dy.mean(), dx.std(), dy.std()]),
        "spectrum": np.log(np.array(bands) + 1e-9),
    }


def same_format(content: bytes, size: int, quality: int = 75) -> bytes:
    """The picture again as a JPEG of size x size: what a fair comparison of I1, I2, I3 needs."""
    image = Image.open(io.BytesIO(content)).convert("RGB")
    image = image if image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)
    image.save(out := io.BytesIO(), "JPEG", quality=quality)
    return out.getvalue()


def as_image(content: bytes) -> Image.Image:
    return Image.open(io.BytesIO(content))


def predict_better(worse: list[bytes], better: list[bytes], folds: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """For each cue, (n,) 1.0 where a logistic regression on the difference of the pair's cues, trained on the other
    folds, names the better picture. Chance is 0.5; the order inside each pair is random."""
    a, b = [cues(c) for c in worse], [cues(c) for c in better]
    sign = np.random.default_rng(seed).choice([-1, 1], len(a))
    out = {}
    for cue in CUES:
        difference = np.stack([y[cue] - x[cue] for x, y in zip(a, b)]) * sign[:, None]
        model = make_pipeline(StandardScaler(with_mean=False), LogisticRegression(max_iter=2000))
        out[cue] = (cross_val_predict(model, difference, sign, cv=folds) == sign).astype(float)
    return out
