"""Pictures as files and as tensors (b, 3, h, w) in [0, 1], and tables that name them."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import ExifTags, Image, ImageOps
from torch import Tensor

from icthp import kernels
from icthp.recipe import fit as fit_square  # noqa: F401
from icthp.recipe import of_side
from icthp.tables import read_columns


def encode(pixels: Tensor, format: str = "PNG", **options) -> list[dict]:
    """Pixels (b, 3, h, w) in [0, 1], or uint8, as file contents, in the form that datasets.Image() stores; one picture at a time."""
    rows = []
    for picture in pixels:
        levels = picture if picture.dtype == torch.uint8 else picture.clamp(0, 1).mul(255).round().byte()
        Image.fromarray(levels.permute(1, 2, 0).cpu().numpy()).save(buffer := io.BytesIO(), format, **options)
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


def stack(pictures, size=None) -> Tensor:
    """Pictures or paths -> (n, 3, h, w) in [0, 1]; each through `fit_square`, as bytes, when a side or a Recipe is given."""
    tensors = [read(p) for p in pictures]
    fit = lambda t: t.float() / 255 if size is None else kernels.preprocess(t[None], of_side(size).shape_only)[0]
    return torch.stack([fit(t) for t in tensors])


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
