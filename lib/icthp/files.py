"""Files that are whole or absent, and digests that tell files, models and code apart."""

import functools
import hashlib
import json
import os
import pickle
import secrets
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from safetensors import SafetensorError

from icthp.imports import code_digest, reached

if TYPE_CHECKING:  # torch takes seconds to import, and files need it for `fingerprint` alone
    import torch


def atomic(path, write: Callable[[Path], object]) -> Path:
    """Call write(temporary path beside `path`), flush it to the disk, then rename: `path` is the old file or the new, never half, and any
    number of runs may write it at once. Returns `path`. A write that fails leaves nothing; OSError names `path` if the disk failed."""
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
    """`atomic`; ValueError names the file for a NaN or infinite number, which JSON does not know."""
    try:
        text = json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from error
    return save_text(path, text + "\n")


def read_json(path) -> dict:
    """The JSON object in a file. FileNotFoundError, or ValueError that names a file with anything else."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there")
    try:
        value = json.loads(path.read_text(encoding="utf-8"))
    except (ValueError, RecursionError) as error:
        raise ValueError(f"{path} is no JSON: {error}") from error
    if not isinstance(value, dict):
        raise ValueError(f"{path} holds a {type(value).__name__}, not fields")
    return value


def atomic_folder(folder, write: Callable[[Path], object]) -> Path:
    """Call write(temporary folder inside `folder`), then rename each of its files into `folder`, which keeps its other files. A write
    that fails leaves `folder` as it was, and OSError names it if the disk failed. One run at a time may write a folder."""
    folder = Path(folder)
    is_new = not folder.exists()
    folder.mkdir(parents=True, exist_ok=True)
    for leftover in folder.glob(".????????.partial"):  # of a run that was killed
        shutil.rmtree(leftover, ignore_errors=True)
    partial = folder / f".{secrets.token_hex(4)}.partial"  # on the same disk, even if the folder is a link or a mount
    try:
        partial.mkdir()
        write(partial)
        _move_files(partial, folder)
    except (OSError, RuntimeError, SafetensorError) as error:
        raise OSError(f"{folder} could not be written; what was there before is untouched: {error}") from error
    finally:
        shutil.rmtree(partial, ignore_errors=True)
        if is_new and not any(folder.iterdir()):
            folder.rmdir()
    return folder


def _move_files(source: Path, target: Path) -> None:
    """Flush all files of a folder, then rename them into another on the same disk."""
    written = sorted(file for file in source.rglob("*") if file.is_file())
    for file in written:
        _flush(file)
    for file in written:
        destination = target / file.relative_to(source)
        destination.parent.mkdir(parents=True, exist_ok=True)
        os.replace(file, destination)


def _flush(file: Path) -> None:
    """To the disk, so that a rename never overtakes the contents."""
    with open(file, "rb") as opened:
        os.fsync(opened.fileno())


# ---- digests ----------------------------------------------------------------------------------------------------


def digest(*parts) -> str:
    """20 hexadecimal digits of plain values (JSON's types), bytes and paths; a path counts by its file's contents."""
    total = hashlib.sha256()
    for part in parts:
        total.update(_sha256(part))
    return total.hexdigest()[:20]


def _sha256(part) -> bytes:
    if isinstance(part, Path):
        with open(part, "rb") as file:
            return hashlib.file_digest(file, "sha256").digest()
    return hashlib.sha256(part if isinstance(part, bytes) else json.dumps(part, sort_keys=True).encode()).digest()


def fingerprint(model: "torch.nn.Module") -> str:
    """A digest of a model's weights: their names, types, shapes and bytes; of what its layers add to its state, the pickled form."""
    import torch

    total = hashlib.sha256()
    for name, p in model.state_dict().items():
        if not isinstance(p, torch.Tensor):  # of get_extra_state
            total.update(f"{name} ".encode() + pickle.dumps(p))
            continue
        total.update(f"{name} {p.dtype} {tuple(p.shape)}".encode())
        total.update(p.detach().cpu().contiguous().flatten().view(torch.uint8).numpy())
    return total.hexdigest()


@functools.cache
def code(*modules: str) -> str:
    """A digest of the named modules and packages of icthp ("images", "data.triplets", ...) and of all those that they import, as Python
    reads them: comments, docstrings and layout do not count. It belongs into the key of a cached file that depends on them. ValueError
    for a name without a file."""
    lib = Path(__file__).parents[1]
    for name in modules:
        if (
            not lib.joinpath("icthp", *name.split(".")).with_suffix(".py").exists()
            and not (lib / "icthp" / name.replace(".", "/")).is_dir()
        ):
            raise ValueError(f"icthp has no module {name!r}")
    found = reached("\n".join(f"import icthp.{name}" for name in modules), lib)
    return digest({name: code_digest(file.read_text(encoding="utf-8")) for name, file in found.items()})
