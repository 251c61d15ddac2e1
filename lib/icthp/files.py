"""Files that are whole or absent, and digests that tell files, models and code apart."""

import functools
import hashlib
import json
import os
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from icthp.imports import code_digest

if TYPE_CHECKING:  # torch takes seconds to import, and files need it for `fingerprint` alone
    import torch


def atomic(path, write: Callable[[Path], object]) -> Path:
    """Call write(temporary path beside `path`), flush it to the disk, then rename: `path` is the old file or the new, never half, and any
    number of runs may write it at once. Returns `path`. Where write fails nothing is left; OSError names `path` where the disk failed."""
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.stem[:40]}.{secrets.token_hex(4)}.partial{path.suffix}")
    try:
        write(partial)
        _flush(partial)
        os.replace(partial, path)
    except (OSError, RuntimeError, SafetensorError) as error:  # torch and safetensors have types of their own for a full disk
        raise OSError(f"{path} could not be written; what was there before is untouched: {error}") from error
    finally:
        partial.unlink(missing_ok=True)
    return path


def save_text(path, text: str) -> Path:
    """`atomic`, in UTF-8."""
    return atomic(path, lambda partial: partial.write_text(text, encoding="utf-8"))


def save_json(path, value) -> Path:
    """`atomic`; ValueError names the file where a number is NaN or infinite, which JSON does not know."""
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return save_text(path, text + "\n")


def atomic_folder(folder, write: Callable[[Path], object]) -> Path:
    """Call write(temporary folder inside `folder`), then rename each of its files into `folder`, which keeps its other files. Where write
    fails, `folder` is as it was, and OSError names it where the disk failed. One run at a time may write a folder."""
    folder, missing = Path(folder), not Path(folder).exists()
    folder.mkdir(parents=True, exist_ok=True)
    for left in folder.glob(".????????.partial"):  # by a run that was killed
        shutil.rmtree(left, ignore_errors=True)
    partial = folder / f".{secrets.token_hex(4)}.partial"  # on the same disk, also where the folder is a link or a mount
    try:
        partial.mkdir()
        write(partial)
        written = sorted(file for file in partial.rglob("*") if file.is_file())
        for file in written:
            _flush(file)
        for file in written:
            place = folder / file.relative_to(partial)
            place.parent.mkdir(parents=True, exist_ok=True)
            os.replace(file, place)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written; what was there before is untouched: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if missing and not any(folder.iterdir()):
            folder.rmdir()
    return folder


def _flush(file: Path) -> None:
    """To the disk, so that a rename never overtakes the contents."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())


# ---- digests ----------------------------------------------------------------------------------------------------


def digest(*parts) -> str:
    """20 hexadecimal digits of plain values (JSON's types), bytes and paths; of a path its file's contents count, not its name."""
    whole = hashlib.sha256()
    for part in parts:
        one = hashlib.sha256()
        if isinstance(part, Path):
            with open(part, "rb") as file:
                one = hashlib.file_digest(file, "sha256")
        else:
            one.update(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode())
        whole.update(one.digest())
    return whole.hexdigest()[:20]


def fingerprint(model: "torch.nn.Module") -> str:
    """A digest of a model's weights: their names, types, shapes and bytes."""
    import torch

    whole = hashlib.sha256()
    for name, p in model.state_dict().items():
        whole.update(f"{name} {p.dtype} {tuple(p.shape)}".encode())
        whole.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return whole.hexdigest()


@functools.cache
def code(*modules: str) -> str:
    """A digest of the named modules and packages of icthp ("pictures", "kernels", ...) as Python reads them: comments,
    docstrings and layout do not count. It belongs into the key of a file that is kept between runs and depends on them."""
    here = Path(__file__).parent
    found = [file for name in modules for file in (here / f"{name}.py", *sorted((here / name).rglob("*.py"))) if file.exists()]
    return digest(*(code_digest(file.read_text(encoding="utf-8")) for file in found))
