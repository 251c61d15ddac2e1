"""State dicts in files: safetensors, or torch files without code; whole, in shards or as a variant. Each error is one sentence."""

import json
import pickle
from pathlib import Path

import torch
from huggingface_hub import hf_hub_download, snapshot_download
from huggingface_hub.errors import EntryNotFoundError
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor, nn

STEMS = ("open_clip_model", "open_clip_pytorch_model", "model", "pytorch_model")  # open_clip's names first, as open_clip looks for them
ENDINGS = (".safetensors", ".safetensors.index.json", ".bin", ".bin.index.json", ".pth")  # the safer ones first
FILES = tuple(stem + ending for stem in STEMS for ending in ENDINGS)
WRAPPERS = ("state_dict", "model")  # of Lightning and open_clip, of LAVIS
PREFIXES = ("module.", "_orig_mod.")  # of DDP and of torch.compile
CONFIG_FILES = ("*.json", "*.txt", "*.model", "*.md")


def read_state(path) -> dict[str, Tensor]:
    """The state dict in a file: safetensors, or a torch file without code, bare or under one of WRAPPERS; or in the shards beside an index
    (.index.json) that it names. DDP's and torch.compile's prefixes are removed.

    Raises FileNotFoundError, or ValueError that names a file that is incomplete, empty, a Git LFS pointer, code, or no state dict, and
    the key of a value that is not finite."""
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path} is not there: name the file of the weights")
    if path.name.endswith(".index.json"):
        state = _shards(path)
    else:
        state = _to_state_dict(_load_file(path), path)
    check_finite(state, path)
    return state


def under(prefix: str, state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The part of a state dict whose names begin with a prefix, without it."""
    return {name.removeprefix(prefix): value for name, value in state.items() if name.startswith(prefix)}


def renamed(state: dict[str, Tensor], pairs) -> dict[str, Tensor]:
    """Each (old, new) replaced in every name, in this order."""
    names = {name: name for name in state}
    for old, new in pairs:
        names = {name: changed.replace(old, new) for name, changed in names.items()}
    return {names[name]: value for name, value in state.items()}


def check_finite(state: dict[str, Tensor], source) -> None:
    """Raises ValueError that names the source and the first key with a NaN or infinite value."""
    for name, value in state.items():
        if value.is_floating_point() and not _is_finite(value):
            raise ValueError(f"{source} holds NaN or infinite values in {name}: these weights are of no use; fetch or train them again")


def _is_finite(value: Tensor) -> bool:
    return not value.numel() or bool(torch.isfinite(value.sum(dtype=torch.float64))) or bool(value.isfinite().all())


def _shards(index: Path) -> dict[str, Tensor]:
    """The tensors of every file in an index; only files beside it are read."""
    try:
        names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values()))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise ValueError(f"{index} is no index of shards: it needs a `weight_map`; fetch it again") from error
    state = {}
    for name in names:
        if not isinstance(name, str) or Path(name).name != name:
            raise ValueError(f"{index}: `weight_map` names {name!r}, which is no file beside it")
        if not (index.parent / name).is_file():
            raise FileNotFoundError(f"{index} names {name}, which is not beside it: fetch the missing shard")
        state |= _to_state_dict(_load_file(index.parent / name), index.parent / name)
    return state


def _load_file(path: Path):
    """The contents of one file."""
    with path.open("rb") as file:
        start = file.read(64)
    if not start:
        raise ValueError(f"{path} is empty: fetch it again")
    if start.startswith(b"version https://git-lfs"):
        raise ValueError(f"{path} is a Git LFS pointer, not the weights: run `git lfs pull`, or download the file from the Hub")
    try:
        return load_file(path) if path.suffix == ".safetensors" else torch.load(path, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:  # torch's own message recommends to run the code
        raise ValueError(f"{path} holds more than tensors, which weights_only refuses to run: ask for a safetensors file") from error
    except (SafetensorError, RuntimeError, EOFError, OSError, KeyError, ValueError, TypeError, AttributeError) as error:
        kind = "safetensors" if path.suffix == ".safetensors" else "torch (weights_only)"
        raise ValueError(f"{path} cannot be read as a {kind} file, perhaps it is cut: fetch it again") from error


def _to_state_dict(state, path: Path) -> dict[str, Tensor]:
    """A state dict, bare or under one of WRAPPERS, without prefixes."""
    wrapper = next((name for name in WRAPPERS if isinstance(state, dict) and isinstance(state.get(name), dict)), None)
    state = state[wrapper] if wrapper else state
    if not isinstance(state, dict) or not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        raise ValueError(f'{path} holds no state dict (names and tensors, bare or under "state_dict"): save model.state_dict()')
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): value for name, value in state.items()}
    return {name: value for name, value in state.items() if not name.endswith("position_ids")}  # older transformers stored these


def fill(model: nn.Module, state: dict[str, Tensor], source) -> nn.Module:
    """`model` with the weights of `state`, in eval mode; ValueError that names the keys that do not fit."""
    own = model.state_dict()
    differing = [key for key in own.keys() & state.keys() if own[key].shape != state[key].shape]
    shapes = [f"{key} {tuple(state[key].shape)}, not {tuple(own[key].shape)}" for key in differing]
    mismatches = {"it lacks": own.keys() - state.keys(), "it has an unknown": state.keys() - own.keys(), "it has another shape for": shapes}
    if any(mismatches.values()):
        reasons = "; ".join(f"{what} {_first_three(keys)}" for what, keys in mismatches.items() if keys)
        raise ValueError(f"{source} does not fit this {type(model).__name__}: {reasons}")
    check_finite(state, source)
    model.load_state_dict(state)
    return model.eval()


def _first_three(keys) -> str:
    return ", ".join(sorted(keys)[:3]) + (" ..." if len(keys) > 3 else "")


# ---- folders ----------------------------------------------------------------------------------------------------------


def weights_in(folder) -> Path | None:
    """The file, or the index of shards, that holds a folder's weights: one of FILES, else a variant such as model.fp16.safetensors."""
    folder = Path(folder)
    for stem in STEMS:
        usual = [folder / (stem + ending) for ending in ENDINGS]
        variants = [p for p in folder.glob(f"{stem}.*") if p.name not in FILES and p.name.endswith(ENDINGS) and "-of-" not in p.name]
        for path in (*usual, *sorted(variants)):
            if path.is_file():
                return path
    return None


def folder_of(source: str, **options) -> Path:
    """The folder of "local-dir:folder", a path, or "hf-hub:org/repo", which is downloaded unless the cache has it. options:
    snapshot_download's."""
    if source.startswith("hf-hub:"):
        return Path(
            snapshot_download(
                source.removeprefix("hf-hub:"), allow_patterns=[*CONFIG_FILES, "*.safetensors", "*.bin", "*.pt", "*.pth"], **options
            )
        )
    return Path(source.removeprefix("local-dir:"))


def clip_folder(source: str, **options) -> Path:
    """The same for one CLIP, of whose repository only one of several sets of weights is downloaded. options: snapshot_download's."""
    if not source.startswith("hf-hub:"):
        return folder_of(source)
    repo = source.removeprefix("hf-hub:")
    folder = Path(snapshot_download(repo, allow_patterns=list(CONFIG_FILES), **options))
    weights = weights_in(folder)
    if weights is None or weights.suffix == ".json":
        _download_weights(repo, folder, options | {"revision": folder.name})
    return folder


def _download_weights(repo: str, folder: Path, options: dict) -> None:
    """Into the snapshot: all shards of its index, or the first of FILES that the repository has."""
    index = weights_in(folder)
    names = sorted(set(json.loads(index.read_text(encoding="utf-8"))["weight_map"].values())) if index else FILES
    for name in names:
        try:
            hf_hub_download(repo, name, **options)
        except EntryNotFoundError:
            continue
        if index is None:
            return
