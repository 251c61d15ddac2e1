"""What predicts the better picture of a pair besides quality? Accuracies of classifiers that see one low-level cue only,
before and after pictures were made alike in it, and on pairs into which nothing but that cue was planted."""

from PIL import Image, ImageFilter
from icthp.images import opened
from icthp.images import to_image
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
import io
import numpy as np
import pandas as pd



CUES = ("format", "size", "bytes", "colour", "edges", "spectrum")
RINGS = 8  # of spatial frequency, up to half a cycle a pixel


def _image(content: bytes, size: int | None = None) -> Image.Image:
    """In RGB, scaled to size x size unless it is so or size is None."""
    image = to_image(io.BytesIO(content))
    return image if size is None or image.size == (size, size) else image.resize((size, size), Image.Resampling.BICUBIC)


def _pixels(content: bytes, size: int | None = None) -> np.ndarray:
    return np.asarray(_image(content, size), dtype=np.float64) / 255


def _how(content: bytes) -> tuple[str, dict | None, tuple[int, int]]:
    """How a picture is stored: its format, a JPEG's quantisation, its size."""
    with opened(io.BytesIO(content)) as image:
        return image.format, getattr(image, "quantization", None), image.size


def _encoded(image: Image.Image, format: str, **options) -> bytes:
    image.save(out := io.BytesIO(), format, **options)
    return out.getvalue()


def _rings(height: int, width: int) -> np.ndarray:
    """(height, width // 2 + 1) the ring of each frequency of rfft2, RINGS for those beyond the last."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    return np.minimum((radius * 2 * RINGS).astype(int), RINGS)


def _ring_power(power: np.ndarray, rings: np.ndarray) -> np.ndarray:
    return np.bincount(rings.ravel(), power.ravel(), RINGS + 1) / np.bincount(rings.ravel(), minlength=RINGS + 1).clip(1)


def cues(content: bytes) -> dict[str, np.ndarray]:
    """Low-level cues of one picture file: container format, size in pixels, bytes a pixel (log), colour moments, edge
    strength, power spectrum in rings of frequency (log). ValueError for contents that cannot be read."""
    format, pixels = _how(content)[0], _pixels(content)
    if min(pixels.shape[:2]) < 2:
        raise ValueError(f"cannot be audited: it has {pixels.shape[1]} x {pixels.shape[0]} pixels, and an edge needs two")
    grey = pixels.mean(2)
    power = np.abs(np.fft.rfft2(grey - grey.mean())) ** 2
    dy, dx = np.abs(np.diff(grey, axis=0)), np.abs(np.diff(grey, axis=1))
    return {
        "format": np.array([format == "JPEG", format == "PNG"], float),
        "size": np.array(grey.shape, float),
        "bytes": np.array([np.log(len(content) / grey.size)]),
        "colour": np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1))]),
        "edges": np.array([dx.mean(), dy.mean(), dx.std(), dy.std()]),
        "spectrum": np.log(_ring_power(power, _rings(*grey.shape))[:RINGS] + 1e-9),
    }


def ranker():
    """An unfitted logistic regression on differences of a pair's cues; it scales them, and has no intercept, so no side."""
    return make_pipeline(StandardScaler(with_mean=False), LogisticRegression(fit_intercept=False, max_iter=2000))


def _all_cues(contents: list[bytes], side: str) -> list[dict[str, np.ndarray]]:
    rows = []
    for i, content in enumerate(contents):
        try:
            rows.append(cues(content))
        except ValueError as error:
            raise ValueError(f"the {side} picture of pair {i}: {error}") from error
    return rows


def predict_better(worse: list[bytes], better: list[bytes], groups=None, folds: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """For each cue, and for "all" together, (n,) 1.0 where a logistic regression on the difference of the pair's cues,
    trained on the other folds, names the better picture, 0.5 where it sees no difference. Chance is 0.5; the order inside
    each pair is random. groups (n ids, e.g. prompts): those of one group are in one fold.
    ValueError names a picture that cannot be read."""
    ids = np.arange(len(worse)) if groups is None else pd.factorize(pd.Series(list(groups), dtype=object))[0]
    if len(worse) != len(better) or len(set(ids.tolist())) < folds or (ids < 0).any():
        raise ValueError(
            f"the audit needs pairs of at least {folds} groups, each pair with its group; there are {len(worse)} and {len(better)} pictures"
        )
    a, b = _all_cues(worse, "worse"), _all_cues(better, "better")
    sign = np.random.default_rng(seed).choice([-1, 1], len(a))
    columns = {cue: np.stack([y[cue] - x[cue] for x, y in zip(a, b)]) * sign[:, None] for cue in CUES}
    split = list(GroupKFold(folds).split(sign, groups=ids))
    columns["all"] = np.concatenate(list(columns.values()), 1)
    decide = lambda x: cross_val_predict(ranker(), x, sign, cv=split, method="decision_function") * sign
    return {cue: (np.sign(decide(x)) + 1) / 2 for cue, x in columns.items()}


# ---- controls: make two pictures alike in a cue ----------------------------------------------------------------


def _same_colour(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both get the pair's mean of their channels' means and deviations."""
    mean, std = ((f(x, (0, 1)) + f(y, (0, 1))) / 2 for f in (np.mean, np.std))
    return tuple((p - p.mean((0, 1))) / p.std((0, 1)).clip(1e-6) * std + mean for p in (x, y))


_PLANES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / 3  # grey, on which the cue is measured, and two of colour


def _same_spectrum(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both get the pair's geometric mean of the power in each ring of frequency, plane by plane."""
    rings, planes = _rings(*x.shape[:2]), [p @ _PLANES.T for p in (x, y)]
    means = [p.mean((0, 1)) for p in planes]
    waves = [np.fft.rfft2(p - mean, axes=(0, 1)) for p, mean in zip(planes, means)]
    for c in range(3):
        power = [_ring_power(np.abs(wave[..., c]) ** 2, rings) + 1e-9 for wave in waves]
        for wave, own in zip(waves, power):
            wave[..., c] *= ((power[0] * power[1]) ** 0.25 / own**0.5)[rings]
    back = [np.fft.irfft2(wave, s=x.shape[:2], axes=(0, 1)) + mean for wave, mean in zip(waves, means)]
    return tuple(p @ np.linalg.inv(_PLANES).T for p in back)


CONTROLS = {"colour": _same_colour, "spectrum": _same_spectrum}


def same_encoding(content: bytes, size: int | None = None) -> bytes:
    """A picture as a JPEG of quality 75, as the official I1 and I2 are, and of size x size (None: its own). What is one
    already stays as it is: a second compression would leave a trace of itself."""
    format, quantization, own = _how(content)
    again = _encoded(_image(content, size), "JPEG", quality=75)
    is_one = format == "JPEG" and quantization == _how(again)[1]
    return content if is_one and (size is None or own == (size, size)) else again


def match_pair(first: bytes, second: bytes, size: int | None = None, controls=()) -> tuple[bytes, bytes]:
    """Two pictures in the same encoding, or, with controls (names of CONTROLS, in order; they need pictures of equal size),
    matched in these cues and both PNG, for JPEG's quantisation would undo the match."""
    if not controls:
        return same_encoding(first, size), same_encoding(second, size)
    pixels = [_pixels(content, size) for content in (first, second)]
    for name in controls:
        pixels = CONTROLS[name](*pixels)
    return tuple(_encoded(Image.fromarray((p.clip(0, 1) * 255).round().astype(np.uint8)), "PNG") for p in pixels)


# ---- plants: a picture that differs in one cue and in nothing else ----------------------------------------------

PERTURBATIONS = {
    "format": lambda image: _encoded(image, "PNG"),
    "size": lambda image: _encoded(image.resize([3 * s // 2 for s in image.size], Image.Resampling.BICUBIC), "JPEG", quality=75),
    "colour": lambda image: _encoded(Image.eval(image, lambda v: min(255, v + 24)), "JPEG", quality=75),
    "spectrum": lambda image: _encoded(image.filter(ImageFilter.UnsharpMask(1, 60, 0)), "JPEG", quality=75),
}


def perturb(content: bytes, cue: str) -> tuple[bytes, bytes]:
    """A picture as a JPEG of quality 75, and the same one with nothing but the cue changed."""
    image = _image(content)
    return _encoded(image, "JPEG", quality=75), PERTURBATIONS[cue](image)
