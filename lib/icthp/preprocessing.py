"""What is done to an image before a model reads it: one `Preprocessing`, read from what open_clip, transformers or a publisher state."""

from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("shortest", "longest", "squash", "none")
FILTERS = ("bicubic", "bilinear")
DEFAULTS = {"fill_color": 0, "resize": None, "like": "open_clip", "clipped": True}  # fields that open_clip's own files lack


class Preprocessing(NamedTuple):
    """size: (height, width) that the tower reads. The image is first resized with `filter`, antialiased: its shorter or its longer side
    to that of `resize` (None: of `size`), both ("squash"), or neither ("none"); then its centre is cropped, or it is centred on
    `fill` in [0, 1]; then (x - mean) / std, three each. `like` "open_clip": an odd margin is halved to the even number, and the
    directions are resized in Pillow's order; "transformers": halved down, the width first. `clipped`: values are clipped to [0, 1] after
    each direction, as bytes are."""

    size: tuple[int, int]
    mode: str = "shortest"
    filter: str = "bicubic"
    fill: float = 0.0
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None
    resize: tuple[int, int] | None = None
    like: str = "open_clip"
    clipped: bool = True

    @property
    def without_normalization(self) -> "Preprocessing":
        """The same without its normalisation."""
        return self._replace(mean=None, std=None)

    @property
    def side(self) -> int | tuple[int, int]:
        """Side of the square that the tower reads; (height, width) if it reads no square."""
        height, width = self.size
        return height if height == width else self.size

    @property
    def is_idempotent(self) -> bool:
        """Does an image that went through it come back unchanged?"""
        return self.mode == "none" or self.resize in (None, self.size)

    @property
    def for_cache(self) -> "Preprocessing":
        """How an image is cached for this one, which then has nothing left to resize: without its normalisation, and without a crop that
        would be made twice."""
        return self.without_normalization if self.is_idempotent else self.without_normalization._replace(size=self.resize, resize=None)


def from_side(size) -> Preprocessing:
    """CLIP's own geometry for a side in pixels; a Preprocessing is returned unchanged."""
    return size if isinstance(size, Preprocessing) else Preprocessing((size, size))


# ---- what others state ------------------------------------------------------------------------------------------------


def from_open_clip(config: dict, source) -> Preprocessing:
    """open_clip's preprocess_cfg, as a folder, a pretrained tag or `model.visual` has it, and the keys of DEFAULTS that
    `to_open_clip` adds. Raises ValueError that names the field and `source` for what is not done here."""
    of = lambda key, default=None: default if config.get(key) is None else config[key]
    size = _pair(config, "size", source)
    mode = _one_of(of("resize_mode", "shortest"), MODES, "resize_mode", source)
    filter = _one_of(of("interpolation", "bicubic"), FILTERS, "interpolation", source)
    _one_of(of("mode", "RGB"), ("RGB",), "mode", source)
    if mode == "shortest" and size[0] != size[1]:
        filter = "bicubic"  # as open_clip's transform for sides that differ, whatever the file says
    mean = _three(of("mean", open_clip.OPENAI_DATASET_MEAN), "mean", source)
    std = _positive(_three(of("std", open_clip.OPENAI_DATASET_STD), "std", source), "std", source)
    resize = _pair(config, "resize", source) if of("resize") else None
    like = _one_of(of("like", "open_clip"), ("open_clip", "transformers"), "like", source)
    return Preprocessing(size, mode, filter, _fill(of("fill_color", 0), source), mean, std, resize, like, bool(of("clipped", True)))


def to_open_clip(config: Preprocessing) -> dict:
    """The preprocess_cfg from which `from_open_clip` makes the same Preprocessing."""
    fill = config.fill * 255
    return {"size": config.size, "mode": "RGB", "mean": config.mean, "std": config.std, "interpolation": config.filter,
            "resize_mode": config.mode, "fill_color": round(fill) if fill == round(fill) else fill, "resize": config.resize,
            "like": config.like, "clipped": config.clipped}  # fmt: skip


def from_tower(visual: torch.nn.Module, source="this model") -> Preprocessing:
    """What an image tower of open_clip carries (`preprocess_cfg`, `image_mean`, `image_std`); its size is the tower's own."""
    config = getattr(visual, "preprocess_cfg", {})
    return from_open_clip(dict(config, size=visual.image_size, mean=visual.image_mean, std=visual.image_std), source)


def from_hps(config: Preprocessing) -> Preprocessing:
    """HPS v2's rule (hpsv2/src/open_clip/transform.py, ResizeMaxSize on a tensor): the longer side fitted, centred on black, before the
    normalisation; floats may overshoot [0, 1]."""
    return config._replace(mode="longest", filter="bicubic", fill=0.0, resize=None, clipped=False)


KNOWN = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}


def from_transformers(config: dict, side: int, source) -> Preprocessing:
    """transformers' preprocessor_config.json of a CLIP whose tower reads `side` pixels; absent fields are as in CLIPImageProcessor.
    Raises ValueError that names the field and `source` for what is not done here."""
    _check_processor(config, source)
    resizes = config.get("do_resize", True)
    crops = config.get("do_center_crop", True)
    mode, resize = _mode_and_size(config, source) if resizes else ("none", None)
    if not crops and mode != "squash":
        raise ValueError(f"{source}: `do_center_crop` is false, so that images keep their aspect; a tower that reads a square needs true")
    size = _pair({"crop_size": config.get("crop_size", 224)}, "crop_size", source) if crops else resize
    if size != (side, side):
        raise ValueError(f"{source}: `{'crop_size' if crops else 'size'}` makes images of {size}; the tower reads {(side, side)}")
    filter = _resample(config, source) if resizes else "bicubic"
    mean, std = _normalization(config, source)
    return Preprocessing(size, mode, filter, 0.0, mean, std, None if resize == size else resize, "transformers")


def _check_processor(config: dict, source) -> None:
    """ValueError for a processor that is not CLIP's, or that is asked for a step CLIP's does not have."""
    for field in ("image_processor_type", "feature_extractor_type"):
        if config.get(field) and not str(config[field]).startswith("CLIP"):
            raise ValueError(f"{source}: `{field}` is {config[field]!r}; only CLIP's image processors are read")
    if unknown := sorted(key for key, value in config.items() if key.startswith("do_") and value and key not in KNOWN):
        raise ValueError(f"{source}: `{unknown[0]}` is {config[unknown[0]]!r}, which is not done here")


def _resample(config: dict, source) -> str:
    filters = {3: "bicubic", 2: "bilinear"}  # Pillow's numbers
    if config.get("resample", 3) not in filters:
        raise ValueError(f"{source}: `resample` is {config['resample']!r}, neither 3 (bicubic) nor 2 (bilinear)")
    return filters[config.get("resample", 3)]


def _mode_and_size(config: dict, source) -> tuple[str, tuple[int, int]]:
    """Mode and target of transformers' `size`; a bare number is the shorter edge, as CLIP's processor reads it."""
    size = config.get("size", {"shortest_edge": 224})
    if isinstance(size, int) and config.get("default_to_square"):
        size = {"height": size, "width": size}
    if isinstance(size, int) or (isinstance(size, dict) and size.keys() == {"shortest_edge"}):
        return "shortest", _pair({"size": size if isinstance(size, int) else size["shortest_edge"]}, "size", source)
    if isinstance(size, dict) and size.keys() == {"height", "width"}:
        return "squash", _pair({"size": size}, "size", source)
    raise ValueError(f'{source}: `size` is {size!r}, neither {{"shortest_edge"}} nor {{"height", "width"}}')


def _normalization(config: dict, source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels in [0, 1] of a processor that reads bytes, and rescales and normalises them as `config` says."""
    factor = config.get("rescale_factor", 1 / 255)
    if not _is_number(factor) or factor <= 0:
        raise ValueError(f"{source}: `rescale_factor` is {factor!r}; it must be a positive number such as 0.00392156862745098")
    scale = 255 * factor if config.get("do_rescale", True) else 255.0
    mean, std = (0.0,) * 3, (1.0,) * 3
    if config.get("do_normalize", True):
        mean = _three(config.get("image_mean", open_clip.OPENAI_DATASET_MEAN), "image_mean", source)
        std = _positive(_three(config.get("image_std", open_clip.OPENAI_DATASET_STD), "image_std", source), "image_std", source)
    scale = 1.0 if abs(scale - 1) < 1e-9 else scale
    return tuple(m / scale for m in mean), tuple(s / scale for s in std)


def _is_number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _pair(config: dict, field: str, source) -> tuple[int, int]:
    """(height, width) of a number, of one or two numbers, or of {"height", "width"}."""
    value = config.get(field)
    sides = list(value) if isinstance(value, (list, tuple)) else [value]
    if isinstance(value, dict):
        sides = [value.get("height"), value.get("width")]
    if not all(_is_number(v) and float(v).is_integer() and v > 0 for v in sides) or len(sides) not in (1, 2):
        raise ValueError(f"{source}: `{field}` is {value!r}, not a height and a width in pixels")
    return int(sides[0]), int(sides[-1])


def _one_of(value, known, field: str, source) -> str:
    if value not in known:
        raise ValueError(f"{source}: `{field}` is {value!r}; only {', '.join(known)} {'are' if len(known) > 1 else 'is'} done here")
    return value


def _three(value, field: str, source) -> tuple[float, ...]:
    three = tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
    if len(three) != 3 or not all(map(_is_number, three)):
        raise ValueError(f"{source}: `{field}` is {value!r}, not three numbers")
    return three


def _positive(three: tuple, field: str, source) -> tuple:
    if min(three) <= 0:
        raise ValueError(f"{source}: `{field}` is {three!r}, not positive")
    return three


def _fill(value, source) -> float:
    if not _is_number(value) or not 0 <= value <= 255:
        raise ValueError(f"{source}: `fill_color` is {value!r}; only one grey of 0 to 255 is filled in")
    return value / 255


# ---- geometry ---------------------------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """One direction: `source` pixels become `resized`, of which `start` to `stop` are kept."""

    source: int
    resized: int
    start: int
    stop: int


class Plan(NamedTuple):
    """Both directions, height and width, and the `order` (0 height, 1 width) in which they are resized."""

    axes: tuple[Axis, Axis]
    order: tuple[int, int]

    @property
    def is_identity(self) -> bool:
        """Does every pixel keep its place?"""
        return all(a.source == a.resized == a.stop - a.start for a in self.axes)


def plan(config: Preprocessing, h: int, w: int) -> Plan:
    """How an image of h x w becomes one of config.size. Pillow 13 resizes the width first, unless the height shrinks by more than twice as
    many pixels as the width does (found by trial; a test compares the two)."""
    resized = _resized_size(config, h, w)
    axes = tuple(_axis(n, m, size, config.like) for n, m, size in zip((h, w), resized, config.size))
    height_first = config.like == "open_clip" and h - resized[0] > 2 * max(0, w - resized[1])
    return Plan(axes, (0, 1) if height_first else (1, 0))


def _resized_size(config: Preprocessing, h: int, w: int) -> tuple[int, int]:
    """Height and width of the resized image, rounded as torchvision and open_clip round them."""
    to = config.resize or config.size
    if config.mode in ("squash", "none"):
        return to if config.mode == "squash" else (h, w)
    if config.mode == "shortest" and to[0] == to[1]:
        return tuple(to[0] * n // min(h, w) for n in (h, w))
    ratio = (max if config.mode == "longest" else min)(h / to[0], w / to[1])
    return tuple(max(1, round(n / ratio)) for n in (h, w))


def _axis(source: int, resized: int, size: int, like: str) -> Axis:
    if resized < size:
        return Axis(source, resized, 0, resized)
    start = (resized - size) // 2 if like == "transformers" else round((resized - size) / 2)
    return Axis(source, resized, start, start + size)


def resize_center_crop(pixels: Tensor, size) -> Tensor:
    """Pixels (b, 3, h, w) in [0, 1], differentiable, or uint8 -> (b, 3, *size) of the same type, by a Preprocessing without its
    normalisation, or by CLIP's geometry for a side; uint8 becomes float32 in [0, 1] under a Preprocessing that does not clip.

    As Pillow 13 does it: one direction first, then clipped to [0, 1] before the other; overshooting edges differ from those of
    one pass by up to 20 grey levels. uint8 is rounded between, as there. kernels.preprocess is the fast twin."""
    config = from_side(size)
    steps = plan(config, *pixels.shape[-2:])
    pixels = pixels if config.clipped or pixels.dtype != torch.uint8 else pixels.float() / 255
    is_bytes = pixels.dtype == torch.uint8
    if is_bytes and steps.order == (1, 0):  # torch resizes the width of bytes first
        pixels = F.interpolate(pixels, [a.resized for a in steps.axes], mode=config.filter, antialias=True)
    for dim in steps.order:
        axis = steps.axes[dim]
        if pixels.shape[dim - 2] != axis.resized:
            pixels = _resize(pixels, dim, axis.resized, config.filter)
        if config.clipped and not is_bytes and not steps.is_identity:
            pixels = pixels.clamp(0, 1)
        pixels = pixels.narrow(dim - 2, axis.start, axis.stop - axis.start)
    return pad(pixels, config, round(config.fill * 255) if is_bytes else config.fill)


def _resize(pixels: Tensor, dim: int, length: int, filter: str) -> Tensor:
    """One direction (0 height, 1 width) resized to `length`."""
    shape = list(pixels.shape[-2:])
    shape[dim] = length
    if shape[1] == pixels.shape[-1] == 1 and pixels.dtype != torch.uint8:  # torch resizes one column of floats wrongly, two rightly
        return F.interpolate(pixels.expand(-1, -1, -1, 2), (length, 2), mode=filter, antialias=True)[..., :1]
    return F.interpolate(pixels, shape, mode=filter, antialias=True)


def pad(pixels: Tensor, config: Preprocessing, value: float) -> Tensor:
    """Centred on `value` in an image of config.size, if the pixels are fewer."""
    missing = [size - n for size, n in zip(config.size, pixels.shape[-2:])]
    sides = [part for n in reversed(missing) for part in (n // 2, n - n // 2)]
    return F.pad(pixels, sides, value=value) if any(sides) else pixels
