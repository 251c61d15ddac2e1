"""Pictures as files and as tensors (b, 3, h, w) in [0, 1], and tables that name them."""

import io
from pathlib import Path

import numpy as np
import pandas as pd
import torch
import torch.nn.functional as F
from PIL import Image
from torch import Tensor


def encode(pixels: Tensor, format: str = "PNG", **options) -> list[dict]:
    """Pixels (b, 3, h, w) in [0, 1] as file contents, in the form that datasets.Image() stores."""
    rows = []
    for array in pixels.clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        Image.fromarray(array).save(buffer := io.BytesIO(), format, **options)
        rows.append({"bytes": buffer.getvalue(), "path": None})
    return rows


_UNREADABLE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)  # what Pillow raises for bad files


def to_pixels(picture) -> Tensor:
    """A PIL image or a path -> (3, h, w) float32 in [0, 1]; 16-bit greys keep their range, transparency is dropped.
    Raises ValueError that names a file that cannot be read."""
    try:
        array = _array(picture)
    except _UNREADABLE as error:
        raise ValueError(f"{picture} cannot be read as a picture: {error}") from error
    return torch.from_numpy(array.copy()).permute(2, 0, 1).float() / 255


def _array(picture) -> np.ndarray:
    image = picture if isinstance(picture, Image.Image) else Image.open(picture)
    if image.mode.startswith("I;16"):
        image = Image.fromarray((np.asarray(image) / 257).round().astype(np.uint8))
    return np.asarray(image.convert("RGB"))


def problem(contents: bytes | None) -> str:
    """Why the contents of a picture file cannot be read, "" if they can."""
    try:
        _array(io.BytesIO(contents or b""))
    except _UNREADABLE as error:
        return f"cannot be read: {str(error).partition(' <_io')[0]}"
    return ""


def fit_square(pixels: Tensor, size: int) -> Tensor:
    """CLIP's geometry, differentiable: shorter side to `size` (bicubic, antialiased), then the centre; (b, 3, size, size).

    As Pillow 13 does it: one direction first, the rows unless the picture is tall and shrinks, then cut to [0, 1] before
    the other; where edges overshoot that differs from one pass by up to 20 grey levels."""
    h, w = pixels.shape[-2:]
    if (h, w) == (size, size):
        return pixels
    height, width = (size * n // min(h, w) for n in (h, w))
    first = (height, w) if h > 2 * w and height < h else (h, width)
    for shape in (first, (height, width)):
        pixels = F.interpolate(pixels, shape, mode="bicubic", antialias=True).clamp(0, 1)
    top, left = (round((n - size) / 2) for n in (height, width))
    return pixels[..., top : top + size, left : left + size]


def stack(pictures, size: int | None = None) -> Tensor:
    """Pictures or paths -> (n, 3, h, w); each through `fit_square` when a size is given."""
    tensors = [to_pixels(p) for p in pictures]
    return torch.stack(tensors if size is None else [fit_square(t[None], size)[0] for t in tensors])


SUFFIXES = (".png", ".jpg", ".jpeg", ".webp", ".bmp", ".gif", ".tif", ".tiff")


def read_table(source) -> pd.DataFrame:
    """A folder of pictures, or a table with a column `image` (paths relative to the table) and perhaps `prompt` -> a frame
    with columns image (full path) and prompt (None where there is none)."""
    source = Path(source)
    if source.is_dir():
        files = sorted(str(p) for p in source.iterdir() if p.suffix.lower() in SUFFIXES)
        return pd.DataFrame({"image": files, "prompt": pd.Series([None] * len(files), dtype=object)})
    table = _read(source, ["image"])
    return table if "prompt" in table else table.assign(prompt=pd.Series([None] * len(table), dtype=object))


def read_levels(source, levels: list[str]) -> pd.DataFrame:
    """A table with a column `prompt` and one column of files for each level, plainest first -> the same with full paths."""
    return _read(Path(source), levels, ["prompt"])


def _read(source: Path, files: list[str], others=()) -> pd.DataFrame:
    readers = {".csv": pd.read_csv, ".parquet": pd.read_parquet, ".jsonl": lambda p: pd.read_json(p, lines=True)}
    if not source.exists():
        raise FileNotFoundError(f"{source} does not exist: give a folder of pictures or a table")
    if source.suffix not in readers:
        raise ValueError(f"{source} is neither a folder nor a table: it must end in {', '.join(readers)}")
    table = readers[source.suffix](source)
    missing = [name for name in (*files, *others) if name not in table]
    if missing:
        raise ValueError(f"{source} has no column `{'`, `'.join(missing)}`; it has {', '.join(map(str, table.columns))}")
    for name in files:
        empty = [str(i) for i, path in enumerate(table[name]) if not isinstance(path, str) or not path]
        if empty:
            raise ValueError(f"{source}: column `{name}` names no file in row {', '.join(empty[:5])}; fill it in or drop the row")
    return table.assign(**{name: [str(source.parent / path) for path in table[name]] for name in files})


def jpeg_bytes(pixels: Tensor, quality: int = 95) -> Tensor:
    """(b, 3, h, w) in [0, 1] -> (b,) float32 bytes of the JPEG file, 4:2:0, as DDPO's incompressibility reward."""
    sizes = []
    for array in pixels.detach().clamp(0, 1).mul(255).round().byte().permute(0, 2, 3, 1).cpu().numpy():
        Image.fromarray(array).save(buffer := io.BytesIO(), "JPEG", quality=quality)
        sizes.append(buffer.tell())
    return torch.tensor(sizes, dtype=torch.float32)
