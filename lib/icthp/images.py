"""Images as files and as tensors (b, 3, h, w) in [0, 1], and tables that name them."""

import io
import os
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path

import numpy as np
import pandas as pd
import torch
from PIL import ExifTags, Image, ImageOps, UnidentifiedImageError
from torch import Tensor

from icthp import kernels
from icthp.preprocessing import from_side
from icthp.tables import read_columns

# Raster formats that Pillow decodes itself. Others start a program (EPS: Ghostscript), need a plugin, or accept nearly any bytes.
FORMATS = ("PNG", "JPEG", "WEBP", "AVIF", "GIF", "BMP", "DIB", "TIFF", "PPM", "JPEG2000", "QOI")
SUFFIXES = tuple(sorted(suffix for suffix, format in Image.registered_extensions().items() if format in (*FORMATS, "MPO")))
MAX_PIXELS = 120_000_000  # of an image that is read: decoding needs 7 or 8 bytes a pixel, 1 GB at most
BITS, PHOTOMETRIC, PLANAR, SAMPLE_FORMAT = 258, 262, 284, 339  # tags of TIFF
STRIP = 1 << 20  # pixels that are converted to RGB at once


def encode(pixels: Tensor, format: str = "PNG", **options) -> list[dict]:
    """Pixels (b, 3, h, w), float in [0, 1] or uint8, as file contents, in the form that datasets.Image() stores. options: of Pillow's
    save."""
    return [{"bytes": _encode_one(p, format, **options), "path": None} for p in pixels]


def _encode_one(pixels: Tensor, format: str, **options) -> bytes:
    """The file contents of one image (3, h, w)."""
    levels = pixels if pixels.dtype == torch.uint8 else pixels.clamp(0, 1).mul(255).round().byte()
    buffer = io.BytesIO()
    Image.fromarray(levels.permute(1, 2, 0).contiguous().cpu().numpy()).save(buffer, format, **options)
    return buffer.getvalue()


# ---- reading ----------------------------------------------------------------------------------------------------


@contextmanager
def opened(source) -> Iterator[Image.Image]:
    """A PIL image, a path or an open file as Pillow's image, which is decoded when it is used. ValueError names the image if it cannot
    be opened, and for any error inside the `with`."""
    try:
        if isinstance(source, Image.Image):
            yield source
            return
        with _open_file(source) as file, Image.open(file, formats=FORMATS) as image:
            _check_size(image)
            yield image
    except Exception as error:  # decoders raise anything: AVIF RuntimeError, EXIF TypeError and struct.error
        raise ValueError(f"{printable(source)} cannot be read: {_reason(error)}") from error


def _check_size(image: Image.Image) -> None:
    if image.width * image.height > MAX_PIXELS:
        limit = f"at most {MAX_PIXELS // 10**6} million are read; scale it down"
        raise ValueError(f"it has {image.width} x {image.height} pixels, and {limit}")


def _open_file(source):
    """An open file. Pillow gets no path: it would map a raw TIFF into memory with the sides that its orientation swaps."""
    if hasattr(source, "read"):
        return nullcontext(source)
    path = _path_bytes(source)
    if not os.path.isfile(path):  # a pipe or a device would never end
        hint = "; a name that is not UTF-8 is shown with \\x.., rename such a file" if b"\\x" in path else ""
        raise ValueError(("it is not a regular file" if os.path.exists(path) else "there is no such file") + hint)
    return open(path, "rb")


def _path_bytes(path) -> bytes:
    """A path as the disk has it, whatever the locale."""
    return os.fspath(path).encode("utf-8", "surrogateescape")


def path_text(path) -> str:
    """A path as text that a table can hold."""
    return _path_bytes(path).decode(errors="backslashreplace")


def printable(source) -> str:
    """How a message names an image: its path as printable text, of a long one the end."""
    if isinstance(source, Image.Image) or hasattr(source, "read"):
        return "the picture"
    text = path_text(source)
    return text if len(text) <= 300 else f"...{text[-300:]}"


def _reason(error: Exception) -> str:
    if isinstance(error, UnidentifiedImageError):
        return f"its contents are none of {', '.join(FORMATS)}"
    return getattr(error, "strerror", None) or str(error) or type(error).__name__  # an OSError's without the file's name


def read(source) -> Tensor:
    """A PIL image, a path or an open file -> (3, h, w) uint8, turned upright (EXIF), the first frame. Deep greys keep their range: 16
    bits, integers from 0 to 65535, floats in [0, 1]; transparency is dropped. ValueError names an image that cannot be read, has more
    than MAX_PIXELS pixels, or numbers of another range."""
    with opened(source) as image:
        white = _white_level(image)  # before it is turned, which drops the tags
        return torch.from_numpy(_to_array(exif_transpose(image), white)).permute(2, 0, 1)


def to_pixels(source) -> Tensor:
    """The same as float32 in [0, 1]."""
    return read(source).float() / 255


def to_image(source) -> Image.Image:
    """The same as a PIL image in RGB."""
    return Image.fromarray(read(source).permute(1, 2, 0).numpy())


def _to_array(image: Image.Image, white: float | None) -> np.ndarray:
    """(h, w, 3) uint8, strip by strip, so that a large image is in memory once."""
    width, height = image.size
    if not width or not height:
        raise ValueError(f"it has {width} x {height} pixels")
    out = np.empty((height, width, 3), np.uint8)
    rows = max(1, STRIP // width)
    for top in range(0, height, rows):
        strip = image.crop((0, top, width, min(top + rows, height)))
        out[top : top + rows] = strip.convert("RGB") if white is None else _scale_grey(np.asarray(strip), white)[..., None]
    return out


def _white_level(image: Image.Image) -> float | None:
    """The number that is white in a mode of deep greys, None for other modes."""
    tags = getattr(image, "tag_v2", {})
    depth = max(tags.get(BITS, (8,)))
    if 2 in tags.get(SAMPLE_FORMAT, ()) and depth <= 16 or depth > 8 and tags.get(PLANAR) == 2:
        raise ValueError("this TIFF holds signed numbers, or deep colours plane by plane; save it with 8 bits")
    tags = tags if image.mode[0] in "IF" else {}
    if tags.get(PHOTOMETRIC) == 0:  # Pillow inverts such images only if they have 8 bits
        raise ValueError("in this TIFF of deep greys white is 0; save it with black as 0")
    if image.mode.startswith("I;16"):
        return 4095 if tags.get(BITS) == (12,) else 65535
    if image.mode not in ("I", "F"):
        return None
    low, high = image.getextrema()
    mode, white = ("whole numbers", 65535) if image.mode == "I" else ("floats", 1)
    if not 0 <= low <= high <= white:
        raise ValueError(f"its {mode} go from {low:.6g} to {high:.6g}, and only 0 to {white} has a meaning; scale it")
    if image.mode == "I" and image.format != "PPM" and 0 < high < 4096:
        raise ValueError(f"its 32-bit numbers go up to {high}, so that white may be 255, 4095 or 65535; save it with 8 or 16 bits")
    return white


def _scale_grey(values: np.ndarray, white: float) -> np.ndarray:
    if np.isnan(values).any():
        raise ValueError("a float in it is not a number")
    return (values * (255 / white)).round().astype(np.uint8)


def exif_transpose(image: Image.Image) -> Image.Image:
    """Turned upright by its EXIF orientation, as datasets.Image() does."""
    return ImageOps.exif_transpose(image) if image.getexif().get(ExifTags.Base.Orientation, 1) != 1 else image


def decode_error(contents: bytes | None) -> str:
    """Why the contents of an image file cannot be read, "" if they can."""
    try:
        read(io.BytesIO(contents or b""))
    except ValueError as error:
        return str(error).removeprefix("the picture ")
    return ""


def stack(sources, size=None) -> Tensor:
    """PIL images, paths or open files -> (n, 3, h, w) in [0, 1]. size: a side or a Preprocessing, by which each is resized as bytes."""
    return torch.stack([_resized(read(source), size) for source in sources])


def _resized(image: Tensor, size) -> Tensor:
    """(3, h, w) uint8 in [0, 1], resized if `size` is given."""
    return image.float() / 255 if size is None else kernels.preprocess(image[None], from_side(size).without_normalization)[0]


def read_table(source) -> pd.DataFrame:
    """A folder of images, or a table with a column `image` (paths relative to the table) and perhaps `prompt` -> a frame
    with columns image (full path) and prompt (None if there is none). Other entries of a folder are counted in
    attrs["left_out"], {reason: count}."""
    source = Path(source)
    if source.is_dir():
        return _read_folder(source)
    table = read_columns(source, ["image"], optional=["prompt"])
    return table if "prompt" in table else table.assign(prompt=_no_prompts(len(table)))


def _no_prompts(n: int) -> pd.Series:
    return pd.Series([None] * n, dtype=object)


def _read_folder(folder: Path) -> pd.DataFrame:
    entries = sorted(folder.iterdir())
    files = [path_text(p) for p in entries if not skip_reason(p)]
    table = pd.DataFrame({"image": files, "prompt": _no_prompts(len(files))})
    table.attrs["left_out"] = dict(Counter(reason for p in entries if (reason := skip_reason(p))))
    return table


def skip_reason(path: Path) -> str:
    """Why an entry of a folder is not read as an image, "" if it is."""
    if path.is_dir():
        return "sub-folders"
    if path.name.startswith("."):
        return "hidden files"
    if not path.suffix:
        return "files without an ending"
    return "" if path.suffix.lower() in SUFFIXES else f"files that end in {printable(path.suffix)}"


def read_levels(source, levels: list[str]) -> pd.DataFrame:
    """A table with a column `prompt` and one column of files for each level, plainest first -> the same with full paths."""
    return read_columns(Path(source), levels, ["prompt"])


def common_side(paths) -> int:
    """The shortest side in pixels of all images at these paths that can be opened, the largest to which none needs to be enlarged; only
    their headers are read. ValueError if none can be opened."""
    sides = []
    for path in paths:
        with suppress(ValueError), opened(path) as image:
            sides.append(min(image.size))
    if not sides:
        raise ValueError("none of these pictures can be opened")
    return min(sides)


def jpeg_bytes(pixels: Tensor, quality: int = 95) -> Tensor:
    """(b, 3, h, w), float in [0, 1] or uint8 -> (b,) float32 bytes of the JPEG file, 4:2:0: DDPO's incompressibility reward
    (arXiv 2305.13301)."""
    return torch.tensor([len(_encode_one(p, "JPEG", quality=quality)) for p in pixels.detach()], dtype=torch.float32)


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
    neighbours = grey[:, :-2, 1:-1] + grey[:, 2:, 1:-1] + grey[:, 1:-1, :-2] + grey[:, 1:-1, 2:]
    return {"brightness": grey.flatten(1).mean(1), "contrast": grey.flatten(1).std(1, correction=0), "colourfulness": colourfulness,
            "sharpness": (neighbours - 4 * grey[:, 1:-1, 1:-1]).flatten(1).var(1, correction=0)}  # fmt: skip
