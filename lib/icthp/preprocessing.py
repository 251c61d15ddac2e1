"""What a model does with a picture before it looks: one `Recipe`, read from what open_clip, transformers or a publisher state."""

from typing import NamedTuple

import open_clip
import torch
import torch.nn.functional as F
from torch import Tensor

MODES = ("shortest", "longest", "squash", "none")
FILTERS = ("bicubic", "bilinear")
DEFAULTS = {"fill_color": 0, "resize": None, "like": "open_clip", "clipped": True}  # what open_clip's own files do not keep


class Preprocessing(NamedTuple):
    """size: (height, width) that the tower reads. The picture is first resized with `filter`, antialiased: its shorter or its longer side
    to that of `resize` (None: of `size`), both ("squash"), or not at all ("none"); then its centre is cut out, or it is centred on
    `fill` in [0, 1]; then (x - mean) / std, three each. `like` "open_clip": an odd margin is halved to the even number, and the
    directions are resized in Pillow's order; "transformers": halved down, the width first. `clipped`: values are cut to [0, 1] after each
    direction, as of bytes."""

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
        """Side of the square that the tower reads; (height, width) where it reads none."""
        height, width = self.size
        return height if height == width else self.size

    @property
    def is_idempotent(self) -> bool:
        """Does a picture that it made come back unchanged?"""
        return self.mode == "none" or self.resize in (None, self.size)

    @property
    def for_cache(self) -> "Preprocessing":
        """How a picture is kept for this one, which then finds nothing left to resize: without its normalisation, and without its last cut
        where that would otherwise be made twice."""
        return self.without_normalization if self.is_idempotent else self.without_normalization._replace(size=self.resize, resize=None)


def from_side(size) -> Preprocessing:
    """CLIP's own geometry for a side in pixels; a Recipe comes back as it is."""
    return size if isinstance(size, Preprocessing) else Preprocessing((size, size))


# ---- what others state ------------------------------------------------------------------------------------------------


def from_open_clip(said: dict, source) -> Preprocessing:
    """open_clip's preprocess_cfg, as it lies in a folder, a pretrained tag or on `model.visual`, and the keys of DEFAULTS that
    `to_open_clip` adds. Raises ValueError that names the field and `source` for what we do not do."""
    of = lambda key, default=None: default if said.get(key) is None else said[key]
    size, mode = _pair(said, "size", source), _one_of(of("resize_mode", "shortest"), MODES, "resize_mode", source)
    filter = _one_of(of("interpolation", "bicubic"), FILTERS, "interpolation", source)
    _one_of(of("mode", "RGB"), ("RGB",), "mode", source)
    if mode == "shortest" and size[0] != size[1]:
        filter = "bicubic"  # so does open_clip's transform for sides that differ, whatever the file says
    mean = _three(of("mean", open_clip.OPENAI_DATASET_MEAN), "mean", source)
    std = _positive(_three(of("std", open_clip.OPENAI_DATASET_STD), "std", source), "std", source)
    resize = _pair(said, "resize", source) if of("resize") else None
    like = _one_of(of("like", "open_clip"), ("open_clip", "transformers"), "like", source)
    return Preprocessing(size, mode, filter, _fill(of("fill_color", 0), source), mean, std, resize, like, bool(of("clipped", True)))


def to_open_clip(recipe: Preprocessing) -> dict:
    """The preprocess_cfg from which `of_open_clip` makes the same recipe."""
    fill = recipe.fill * 255
    return {"size": recipe.size, "mode": "RGB", "mean": recipe.mean, "std": recipe.std, "interpolation": recipe.filter,
            "resize_mode": recipe.mode, "fill_color": round(fill) if fill == round(fill) else fill, "resize": recipe.resize,
            "like": recipe.like, "clipped": recipe.clipped}  # fmt: skip


def from_tower(visual: torch.nn.Module, source="this model") -> Preprocessing:
    """The recipe that an image tower of open_clip carries (`preprocess_cfg`, `image_mean`, `image_std`); its size is the tower's own."""
    said = getattr(visual, "preprocess_cfg", {})
    return from_open_clip(dict(said, size=visual.image_size, mean=visual.image_mean, std=visual.image_std), source)


def from_hps(recipe: Preprocessing) -> Preprocessing:
    """HPS v2's rule (hpsv2/src/open_clip/transform.py, ResizeMaxSize on a tensor): the longer side fitted, centred on black, before the
    normalisation; floats overshoot as they like."""
    return recipe._replace(mode="longest", filter="bicubic", fill=0.0, resize=None, clipped=False)


KNOWN = {"do_resize", "do_center_crop", "do_rescale", "do_normalize", "do_convert_rgb"}


def from_transformers(said: dict, side: int, source) -> Preprocessing:
    """transformers' preprocessor_config.json of a CLIP whose tower reads `side` pixels; what it leaves out is as in CLIPImageProcessor.
    Raises ValueError that names the field and `source` for what we do not do."""
    for field in ("image_processor_type", "feature_extractor_type"):
        if said.get(field) and not str(said[field]).startswith("CLIP"):
            raise ValueError(f"{source}: `{field}` is {said[field]!r}; only CLIP's image processors are read")
    if more := sorted(key for key, value in said.items() if key.startswith("do_") and value and key not in KNOWN):
        raise ValueError(f"{source}: `{more[0]}` is {said[more[0]]!r}, which is not done here")
    resizes, crops = said.get("do_resize", True), said.get("do_center_crop", True)
    stated = said.get("size", {"shortest_edge": 224})
    if isinstance(stated, int) and said.get("default_to_square"):
        stated = {"height": stated, "width": stated}
    mode, resize = _resized(stated, source) if resizes else ("none", None)
    if not crops and mode != "squash":
        raise ValueError(f"{source}: `do_center_crop` is false, so that pictures keep their aspect; a tower that reads a square needs true")
    size = _pair({"crop_size": said.get("crop_size", 224)}, "crop_size", source) if crops else resize
    if size != (side, side):
        raise ValueError(f"{source}: `{'crop_size' if crops else 'size'}` makes pictures of {size}; the tower reads {(side, side)}")
    filters = {3: "bicubic", 2: "bilinear"}  # Pillow's numbers
    if resizes and said.get("resample", 3) not in filters:
        raise ValueError(f"{source}: `resample` is {said['resample']!r}, neither 3 (bicubic) nor 2 (bilinear)")
    mean, std = _normalisation(said, source)
    resize = None if resize == size else resize
    return Preprocessing(size, mode, filters[said.get("resample", 3)] if resizes else "bicubic", 0.0, mean, std, resize, "transformers")


def _resized(size, source) -> tuple[str, tuple[int, int]]:
    """Mode and target of transformers' `size`; a bare number is the shorter edge, as CLIP's processor reads it."""
    if isinstance(size, int) or (isinstance(size, dict) and size.keys() == {"shortest_edge"}):
        return "shortest", _pair({"size": size if isinstance(size, int) else size["shortest_edge"]}, "size", source)
    if isinstance(size, dict) and size.keys() == {"height", "width"}:
        return "squash", _pair({"size": size}, "size", source)
    raise ValueError(f'{source}: `size` is {size!r}, neither {{"shortest_edge"}} nor {{"height", "width"}}')


def _normalisation(said: dict, source) -> tuple[tuple[float, ...], tuple[float, ...]]:
    """Mean and std for pixels in [0, 1] of a processor that reads bytes, perhaps rescales them and perhaps normalises."""
    factor = said.get("rescale_factor", 1 / 255)
    if not _number(factor) or factor <= 0:
        raise ValueError(f"{source}: `rescale_factor` is {factor!r}; it must be a positive number such as 0.00392156862745098")
    scale = 255 * factor if said.get("do_rescale", True) else 255.0
    mean, std = (0.0,) * 3, (1.0,) * 3
    if said.get("do_normalize", True):
        mean = _three(said.get("image_mean", open_clip.OPENAI_DATASET_MEAN), "image_mean", source)
        std = _positive(_three(said.get("image_std", open_clip.OPENAI_DATASET_STD), "image_std", source), "image_std", source)
    scale = 1.0 if abs(scale - 1) < 1e-9 else scale
    return tuple(m / scale for m in mean), tuple(s / scale for s in std)


def _number(value) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool)


def _pair(said: dict, field: str, source) -> tuple[int, int]:
    """(height, width) of a number, of one or two numbers, or of {"height", "width"}."""
    value = said.get(field)
    both = [value.get("height"), value.get("width")] if isinstance(value, dict) else value if isinstance(value, (list, tuple)) else [value]
    if not all(_number(v) and float(v).is_integer() and v > 0 for v in both) or len(both) not in (1, 2):
        raise ValueError(f"{source}: `{field}` is {value!r}, not a height and a width in pixels")
    return int(both[0]), int(both[-1])


def _one_of(value, known, field: str, source) -> str:
    if value not in known:
        raise ValueError(f"{source}: `{field}` is {value!r}; only {', '.join(known)} {'are' if len(known) > 1 else 'is'} done here")
    return value


def _three(value, field: str, source) -> tuple[float, ...]:
    three = tuple(value) if isinstance(value, (list, tuple)) else (value,) * 3
    if len(three) != 3 or not all(map(_number, three)):
        raise ValueError(f"{source}: `{field}` is {value!r}, not three numbers")
    return three


def _positive(three: tuple, field: str, source) -> tuple:
    if min(three) <= 0:
        raise ValueError(f"{source}: `{field}` is {three!r}, not positive")
    return three


def _fill(value, source) -> float:
    if not _number(value) or not 0 <= value <= 255:
        raise ValueError(f"{source}: `fill_color` is {value!r}; only one grey of 0 to 255 is filled in")
    return value / 255


# ---- geometry ---------------------------------------------------------------------------------------------------------


class Axis(NamedTuple):
    """One direction: `source` pixels become `whole`, of which `start` to `stop` are kept."""

    source: int
    whole: int
    start: int
    stop: int


class Plan(NamedTuple):
    """Both directions, height and width, and the `order` (0 height, 1 width) in which they are resized."""

    axes: tuple[Axis, Axis]
    order: tuple[int, int]

    @property
    def nothing(self) -> bool:
        """Is no pixel resized or cut?"""
        return all(a.source == a.whole == a.stop - a.start for a in self.axes)


def plan(recipe: Preprocessing, h: int, w: int) -> Plan:
    """How a picture of h x w becomes one of recipe.size. Pillow 13 resizes the width first, unless the height shrinks by more than twice as
    many pixels as the width does (found by trying; a test holds it to that)."""
    whole = _whole(recipe, h, w)
    axes = tuple(_axis(n, m, size, recipe.like) for n, m, size in zip((h, w), whole, recipe.size))
    tall = recipe.like == "open_clip" and h - whole[0] > 2 * max(0, w - whole[1])
    return Plan(axes, (0, 1) if tall else (1, 0))


def _whole(recipe: Preprocessing, h: int, w: int) -> tuple[int, int]:
    """Height and width of the resized picture, rounded as torchvision and open_clip round them."""
    to = recipe.resize or recipe.size
    if recipe.mode in ("squash", "none"):
        return to if recipe.mode == "squash" else (h, w)
    if recipe.mode == "shortest" and to[0] == to[1]:
        return tuple(to[0] * n // min(h, w) for n in (h, w))
    ratio = (max if recipe.mode == "longest" else min)(h / to[0], w / to[1])
    return tuple(max(1, round(n / ratio)) for n in (h, w))


def _axis(source: int, whole: int, size: int, like: str) -> Axis:
    if whole < size:
        return Axis(source, whole, 0, whole)
    start = (whole - size) // 2 if like == "transformers" else round((whole - size) / 2)
    return Axis(source, whole, start, start + size)


def resize_center_crop(pixels: Tensor, size) -> Tensor:
    """Pixels (b, 3, h, w) in [0, 1], differentiable, or uint8 -> (b, 3, *size) of the same type, by a Recipe without its normalisation,
    or by CLIP's geometry for a side; uint8 becomes float32 in [0, 1] where the recipe does not clip.

    As Pillow 13 does it: one direction first, then cut to [0, 1] before the other; where edges overshoot that differs from
    one pass by up to 20 grey levels. uint8 is rounded between, as there. kernels.preprocess is the fast twin."""
    recipe = from_side(size)
    steps = plan(recipe, *pixels.shape[-2:])
    pixels = pixels if recipe.clipped or pixels.dtype != torch.uint8 else pixels.float() / 255
    whole = pixels.dtype == torch.uint8
    if whole and steps.order == (1, 0):  # of bytes torch does the width first
        pixels = F.interpolate(pixels, [a.whole for a in steps.axes], mode=recipe.filter, antialias=True)
    for dim in steps.order:
        axis, shape = steps.axes[dim], list(pixels.shape[-2:])
        if shape[dim] != axis.whole:
            shape[dim] = axis.whole
            thin = (
                pixels.shape[-1] == shape[1] == 1 and not whole
            )  # of one column of floats torch resizes the height wrongly, of two it does not
            pixels, shape = (pixels.expand(-1, -1, -1, 2), (shape[0], 2)) if thin else (pixels, shape)
            pixels = F.interpolate(pixels, shape, mode=recipe.filter, antialias=True)
            pixels = pixels[..., :1] if thin else pixels
        pixels = pixels if whole or steps.nothing or not recipe.clipped else pixels.clamp(0, 1)
        pixels = pixels.narrow(dim - 2, axis.start, axis.stop - axis.start)
    return pad(pixels, recipe, round(recipe.fill * 255) if whole else recipe.fill)


def pad(pixels: Tensor, recipe: Preprocessing, value: float) -> Tensor:
    """Centred on `value` where the picture is smaller than recipe.size."""
    short = [size - n for size, n in zip(recipe.size, pixels.shape[-2:])]
    sides = [part for n in reversed(short) for part in (n // 2, n - n // 2)]
    return F.pad(pixels, sides, value=value) if any(sides) else pixels
