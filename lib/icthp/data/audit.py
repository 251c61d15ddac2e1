"""What predicts the better picture of a pair besides quality? Accuracies of classifiers that see one low-level cue only, before and after
the pair is matched in it, and on pairs that differ in nothing but that cue."""

import io

import numpy as np
import pandas as pd
from PIL import Image, ImageFilter, ImageOps
from sklearn.linear_model import LogisticRegression
from sklearn.model_selection import GroupKFold, cross_val_predict
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler

from icthp import threads
from icthp.images import opened, to_image

CUES = ("format", "size", "bytes", "colour", "edges", "spectrum")
RINGS = 8  # of spatial frequency, up to half a cycle a pixel


def _image(content: bytes, size: int | None = None) -> Image.Image:
    """In RGB, its middle square at size x size, as CLIP crops (None: all of it, at its own size)."""
    image = to_image(io.BytesIO(content))
    return image if size is None or image.size == (size, size) else ImageOps.fit(image, (size, size), Image.Resampling.BICUBIC)


def _bounded(image: Image.Image, side: int | None) -> Image.Image:
    """With a longest side of at most `side` pixels (None: as it is)."""
    if side is None or max(image.size) <= side:
        return image
    return ImageOps.contain(image, (side, side), Image.Resampling.BICUBIC)


def _pixels(image: Image.Image) -> np.ndarray:
    return np.asarray(image, dtype=np.float64) / 255


def _storage(content: bytes) -> tuple[str, dict | None, tuple[int, int]]:
    """How a picture is stored: its format, a JPEG's quantisation tables, (width, height)."""
    with opened(io.BytesIO(content)) as image:
        return image.format, getattr(image, "quantization", None), image.size


def _encode(image: Image.Image, format: str, **options) -> bytes:
    image.save(out := io.BytesIO(), format, **options)
    return out.getvalue()


def _rings(height: int, width: int) -> np.ndarray:
    """(height, width // 2 + 1) the ring of each frequency of rfft2, RINGS for those beyond the last."""
    radius = np.hypot(np.fft.fftfreq(height)[:, None], np.fft.rfftfreq(width)[None])
    return np.minimum((radius * 2 * RINGS).astype(int), RINGS)


def _ring_power(power: np.ndarray, rings: np.ndarray) -> np.ndarray:
    """(RINGS + 1,) mean power in each ring."""
    return np.bincount(rings.ravel(), power.ravel(), RINGS + 1) / np.bincount(rings.ravel(), minlength=RINGS + 1).clip(1)


def cues(content: bytes, side: int | None = None) -> dict[str, np.ndarray]:
    """Low-level cues of one picture file: container format, size in pixels, log of the bytes a pixel, colour moments in [0, 1], edge
    strength, log of the power spectrum in rings of frequency; the last three of the picture reduced to a longest side of `side` pixels
    (None: as it is). ValueError for contents that cannot be read."""
    format, _, (width, height) = _storage(content)
    image = _image(content)
    pixels = _pixels(_bounded(image, side))
    if min(pixels.shape[:2]) < 2:
        raise ValueError(f"cannot be audited: it has {width} x {height} pixels, and an edge needs two")
    grey = pixels.mean(2)
    power = np.abs(np.fft.rfft2(grey - grey.mean())) ** 2
    dy, dx = np.abs(np.diff(grey, axis=0)), np.abs(np.diff(grey, axis=1))
    return {
        "format": np.array([format == "JPEG", format == "PNG"], float),
        "size": np.array(image.size[::-1], float),
        "bytes": np.array([np.log(len(content) / (image.width * image.height))]),
        "colour": np.concatenate([pixels.mean((0, 1)), pixels.std((0, 1))]),
        "edges": np.array([dx.mean(), dy.mean(), dx.std(), dy.std()]),
        "spectrum": np.log(_ring_power(power, _rings(*grey.shape))[:RINGS] + 1e-9),
    }


def ranker():
    """An unfitted logistic regression on differences of a pair's cues; it scales them, and has no intercept, so it favours no side."""
    return make_pipeline(StandardScaler(with_mean=False), LogisticRegression(fit_intercept=False, max_iter=2000))


def all_cues(contents: list[bytes], side: int | None = None, name: str = "picture") -> list[dict[str, np.ndarray]]:
    """`cues` of each, in threads. ValueError names the number of a picture that cannot be read."""

    def measure(row: tuple[int, bytes]) -> dict[str, np.ndarray]:
        try:
            return cues(row[1], side)
        except ValueError as error:
            raise ValueError(f"{name} {row[0]}: {error}") from error

    return threads.each(measure, enumerate(contents), "cues")


def predict_better(worse: list, better: list, groups=None, folds: int = 5, seed: int = 0) -> dict[str, np.ndarray]:
    """For each cue, and for "all" together, (n,) 1.0 where a logistic regression on the difference of the pair's cues, trained on the
    other folds, names the better picture, 0.5 for equal cues. Chance is 0.5; the order inside each pair is random.

    worse, better: n files' contents each, or their `all_cues`. groups (n ids, e.g. prompts): those of one group are in one fold.
    ValueError names a picture that cannot be read."""
    worse, better = list(worse), list(better)
    ids = np.arange(len(worse)) if groups is None else pd.factorize(pd.Series(list(groups), dtype=object))[0]
    if len(worse) != len(better) or len(set(ids.tolist())) < folds or (ids < 0).any():
        raise ValueError(f"the audit needs pairs of at least {folds} groups, each pair with its group; "
                         f"there are {len(worse)} and {len(better)} pictures")  # fmt: skip
    a = worse if isinstance(worse[0], dict) else all_cues(worse, name="the worse picture of pair")
    b = better if isinstance(better[0], dict) else all_cues(better, name="the better picture of pair")
    sign = np.random.default_rng(seed).choice([-1, 1], len(a))
    features = {cue: np.stack([y[cue] - x[cue] for x, y in zip(a, b)]) * sign[:, None] for cue in CUES}
    features["all"] = np.concatenate(list(features.values()), 1)
    folds_of_pairs = list(GroupKFold(folds).split(sign, groups=ids))
    return {cue: _cross_validated(x, sign, folds_of_pairs) for cue, x in features.items()}


def _cross_validated(features: np.ndarray, sign: np.ndarray, folds: list) -> np.ndarray:
    """(n,) 1 if the ranker that was fitted on the other folds has the sign of the pair, 0.5 for a decision of 0, else 0."""
    decision = cross_val_predict(ranker(), features, sign, cv=folds, method="decision_function") * sign
    return (np.sign(decision) + 1) / 2


# ---- controls: match two pictures in a cue ----------------------------------------------------------------------


def _match_colour(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both get the pair's mean of their channels' means and deviations."""
    mean, std = ((f(x, (0, 1)) + f(y, (0, 1))) / 2 for f in (np.mean, np.std))
    return tuple((p - p.mean((0, 1))) / p.std((0, 1)).clip(1e-6) * std + mean for p in (x, y))


_PLANES = np.array([[1, 1, 1], [1, 0, -1], [1, -2, 1]]) / 3  # grey, on which the cue is measured, and two of colour


def _match_spectrum(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Both get the pair's geometric mean of the power in each ring of frequency, plane by plane."""
    rings = _rings(*x.shape[:2])
    planes = [p @ _PLANES.T for p in (x, y)]
    means = [p.mean((0, 1)) for p in planes]
    spectra = [np.fft.rfft2(p - mean, axes=(0, 1)) for p, mean in zip(planes, means)]
    for c in range(3):
        powers = [_ring_power(np.abs(spectrum[..., c]) ** 2, rings) + 1e-9 for spectrum in spectra]
        for spectrum, power in zip(spectra, powers):
            spectrum[..., c] *= ((powers[0] * powers[1]) ** 0.25 / power**0.5)[rings]
    planes = [np.fft.irfft2(spectrum, s=x.shape[:2], axes=(0, 1)) + mean for spectrum, mean in zip(spectra, means)]
    return tuple(p @ np.linalg.inv(_PLANES).T for p in planes)


CONTROLS = {"colour": _match_colour, "spectrum": _match_spectrum}


def same_encoding(content: bytes, size: int | None = None) -> bytes:
    """A picture as a JPEG of quality 75, as the official I1 and I2 are, and its middle square of size x size (None: all of it). JPEG-75
    files of that size are returned unchanged: a second compression would leave a trace of itself. ValueError for contents that cannot be
    read."""
    format, quantization, own_size = _storage(content)
    encoded = _encode(_image(content, size), "JPEG", quality=75)
    is_jpeg_75 = format == "JPEG" and quantization == _storage(encoded)[1]
    return content if is_jpeg_75 and (size is None or own_size == (size, size)) else encoded


def reduced(content: bytes, side: int) -> bytes:
    """A picture without loss, with a longest side of at most `side` pixels; the contents themselves where it has no longer one."""
    return content if max(_storage(content)[2]) <= side else _encode(_bounded(_image(content), side), "PNG")


def match_pairs(first: list[bytes], second: list[bytes], size: int | None = None, controls=()) -> tuple[tuple[bytes], tuple[bytes]]:
    """`match_pair` of each two, in threads."""
    return tuple(zip(*threads.each(lambda pair: match_pair(*pair, size, controls), zip(first, second), "match")))


def match_pair(first: bytes, second: bytes, size: int | None = None, controls=()) -> tuple[bytes, bytes]:
    """Two pictures in the same encoding, or, with controls (names of CONTROLS, in order; they need pictures of equal size),
    matched in these cues and both PNG, for JPEG's quantisation would undo the match."""
    if not controls:
        return same_encoding(first, size), same_encoding(second, size)
    pixels = [_pixels(_image(content, size)) for content in (first, second)]
    for name in controls:
        pixels = CONTROLS[name](*pixels)
    return tuple(_encode(Image.fromarray((p.clip(0, 1) * 255).round().astype(np.uint8)), "PNG") for p in pixels)


# ---- perturbations: a picture that differs in one cue and in nothing else ---------------------------------------

PERTURBATIONS = {
    "format": lambda image: _encode(image, "PNG"),
    "size": lambda image: _encode(image.resize([3 * s // 2 for s in image.size], Image.Resampling.BICUBIC), "JPEG", quality=75),
    "colour": lambda image: _encode(Image.eval(image, lambda v: min(255, v + 24)), "JPEG", quality=75),
    "spectrum": lambda image: _encode(image.filter(ImageFilter.UnsharpMask(1, 60, 0)), "JPEG", quality=75),
}


def perturb(content: bytes, cue: str) -> tuple[bytes, bytes]:
    """A picture as a JPEG of quality 75, and the same one with nothing but the cue (a name of PERTURBATIONS) changed."""
    image = _image(content)
    return _encode(image, "JPEG", quality=75), PERTURBATIONS[cue](image)
