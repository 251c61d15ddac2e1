"""Pictures as files and as tensors (b, 3, h, w) in [0, 1], and tables that name them."""

import io
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from icthp.tables import read_columns


def encode(pixels: Tensor, format: str = "PNG", **options) -> list[dict]:
    """Pixels (b, 3, h, w) in [0, 1] as file contents, in the form that datasets.Image() stores."""
    rows = []
    for array in pixels.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        Image.fromarray(array).save(buffer := io.BytesIO(), format, **options)
        rows.append({"bytes": buffer.getvalue(), "path": None})
    return rows


_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for bad files


def read(picture) -> Tensor:
    """A PIL image, a path or an open file -> (3, h, w) uint8, upright; 16-bit greys keep their range, transparency is dropped.
    Raises ValueError that names a file that cannot be read."""
    try:
        array = _array(picture)
    except _UNREADABLE as error:
        raise ValueError(f"{picture} cannot be read as a picture: {error}") from error
    return torch.from_numpy(array).permute(2, 0, 1)


def to_pixels(picture) -> Tensor:
    """The same as float32 in [0, 1]."""
    return read(picture).float() / 255


def _array(picture) -> np.ndarray:
    image = upright(picture if isinstance(picture, Image.Image) else Image.open(picture))
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return np.array(image if image.mode == "RGB" else image.convert("RGB"))


def upright(image: Image.Image) -> Image.Image:
    """Turned as its camera says (EXIF), as datasets.Image() turns it too."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image


def problem(contents: bytes | None) -> str:
    """Why the contents of a picture file cannot be read, "" if they can."""
    try:
        _array(io.BytesIO(contents or b""))
    except _UNREADABLE as error:
        return f"cannot be read: {str(error).partition(' <_io')[0]}"
    return ""


class Square(NamedTuple):
    """How a picture becomes a square: its `shape` before the cut, the cut's upper left corner `start`, and the `order` in
    which height (0) and width (1) are resized."""

    shape: tuple[int, int]
    start: tuple[int, int]
    order: tuple[int, int]


def square_of(h: int, w: int, size: int) -> Square:
    """CLIP's geometry: the shorter side to `size`, then the centre; the width first unless the picture is tall and shrinks."""
    shape = tuple(size * n // min(h, w) for n in (h, w))
    start = tuple(round((n - size) / 2) for n in shape)
    return Square(shape, start, (0, 1) if h > 2 * w and shape[0] < h else (1, 0))


def fit_square(pixels: Tensor, size: int) -> Tensor:
    """CLIP's geometry, bicubic and antialiased: (b, 3, h, w) in [0, 1], differentiable, or uint8 -> (b, 3, size, size).

    As Pillow 13 does it: one direction first, then cut to [0, 1] before the other; where edges overshoot that differs from
    one pass by up to 20 grey levels. uint8 is rounded between, as there. kernels.preprocess is the fast twin."""
    h, w = pixels.shape[-2:]
    if (h, w) == (size, size):
        return pixels
    square = square_of(h, w, size)
    whole = pixels.dtype == torch.uint8
    first = (square.shape[0], w) if square.order == (0, 1) else (h, square.shape[1])
    steps = (square.shape,) if whole and square.order == (1, 0) else (first, square.shape)  # of bytes torch does the width first
    for shape in steps:
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True)
        pixels = pixels if whole else pixels.clamp(0, 1)
    top, left = square.start
    return pixels[..., top : top + size, left : left + size]


def stack(pictures, size: int | None = None) -> Tensor:
    """Pictures or paths -> (n, 3, h, w) in [0, 1]; each through `fit_square`, as bytes, when a size is given."""
    tensors = [read(p) for p in pictures]
    return torch.stack(tensors if size is None else [fit_square(t[None], size)[0] for t in tensors]).float() / 255


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_table(source) -> pd.DataFrame:
    """A folder of pictures, or a table with a column `image` (paths relative to the table) and perhaps `prompt` -> a frame
    with columns image (full path) and prompt (None where there is none)."""
    source = Path(source)
    if source.is_dir():
        files = sorted(str(p) for p in source.iterdir() if p.suffix.lower() in SUFFIXES)
        return pd.DataFrame({"image": files, "prompt": pd.Series([None] * len(files), dtype=object)})
    table = read_columns(source, ["image"], optional=["prompt"])
    return table if "prompt" in table else table.assign(prompt=pd.Series([None] * len(table), dtype=object))


def read_levels(source, levels: list[str]) -> pd.DataFrame:
    """A table with a column `prompt` and one column of files for each level, plainest first -> the same with full paths."""
    return read_columns(Path(source), levels, ["prompt"])


def jpeg_bytes(pixels: Tensor, quality: int = 95) -> Tensor:
    """(b, 3, h, w) in [0, 1] -> (b,) float32 bytes of the JPEG file, 4:2:0, as DDPO's incompressibility reward."""
    return torch.tensor([len(file["bytes"]) for file in encode(pixels.detach(), "JPEG", quality=quality)], dtype=torch.float32)


def statistics(pixels: Tensor) -> dict[str, Tensor]:
    """(b, 3, h, w) in [0, 1] -> (b,) each: brightness, the mean grey; contrast, its standard deviation; colourfulness (Hasler and
    Suesstrunk 2003, on [0, 1]); sharpness, the variance of the grey's Laplacian; all in float32."""
    if len(pixels) > 64:
        parts = [statistics(part) for part in pixels.split(64)]
        return {name: torch.cat([part[name] for part in parts]) for name in parts[0]}
    r, g, b = pixels.detach().float().unbind(1)
    grey = 0.299 * r + 0.587 * g + 0.114 * b
    opponents = torch.stack([r - g, (r + g) / 2 - b], 1).flatten(2)
    colourfulness = opponents.std(2, correction=0).norm(dim=1) + 0.3 * opponents.mean(2).norm(dim=1)
    around = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return {"brightness": grey.flatten(1).mean(1), "contrast": grey.flatten(1).std(1, correction=0), "colourfulness": colourfulness,
            "sharpness": (around - 4 * grey[:, 1:-1, 1:-1]).flatten(1).var(1, correction=0)}  # fmt: skip
