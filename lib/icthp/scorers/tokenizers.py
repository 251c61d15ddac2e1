"""Tokenizers of CLIPs under open_clip's interface: texts -> (b, context_length) int64. No code of a folder is run."""

from pathlib import Path

import open_clip
from torch import Tensor
from transformers import AutoTokenizer, CLIPTokenizer

from icthp.files import read_json


class FolderTokenizer:
    """A transformers folder's own tokenizer under open_clip's interface. It reads a text unchanged; open_clip's own first mends
    quotes, entities and white space: PickScore, say, was trained without that. ValueError for a folder without a readable one."""

    def __init__(self, folder: Path, context_length: int):
        self.context_length = context_length
        try:
            self.tokenizer = AutoTokenizer.from_pretrained(folder, trust_remote_code=False, local_files_only=True)
        except (ValueError, OSError, KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{folder} has no tokenizer that can be read: {_first_line(error)}") from error

    def __call__(self, texts: list[str] | str, context_length: int | None = None) -> Tensor:
        """(b, context_length) int64, truncated there."""
        texts = [texts] if isinstance(texts, str) else list(texts)
        length = context_length or self.context_length
        return self.tokenizer(texts, padding="max_length", truncation=True, max_length=length, return_tensors="pt").input_ids


def load_tokenizer(folder: Path, text: dict, is_local: bool):
    """open_clip's own tokenizer, or the one that text_cfg names, of a local folder the one inside it. ValueError for one that cannot be
    read, or that asks for Python of the folder."""
    options = text.get("tokenizer_kwargs") or {}
    length = text.get("context_length", open_clip.tokenizer.DEFAULT_CONTEXT_LENGTH)
    inside = is_local or (folder / "tokenizer_config.json").exists()
    address = str(folder) if inside else text.get("hf_tokenizer_name")
    try:
        if not text.get("hf_tokenizer_name"):
            return open_clip.SimpleTokenizer(context_length=length, **options)
        return open_clip.tokenizer.HFTokenizer(address, context_length=length, tokenizer_mode=text.get("tokenizer_mode"),
                                               trust_remote_code=False, local_files_only=inside, **options)  # fmt: skip
    except (ValueError, OSError, KeyError, TypeError, ImportError, AttributeError, AssertionError) as error:
        if inside and (folder / "tokenizer_config.json").exists() and "auto_map" in read_json(folder / "tokenizer_config.json"):
            raise ValueError(f"{folder}/tokenizer_config.json: `auto_map` asks for Python of the folder, which is never run") from error
        raise ValueError(f"{address} has no tokenizer that can be read: {_first_line(error)}") from error


def _first_line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0]


def to_transformers(tokenizer) -> CLIPTokenizer:
    """open_clip's own byte-pair tokenizer, or one that it or transformers loaded, in transformers' format, which can be saved."""
    if isinstance(tokenizer, open_clip.SimpleTokenizer):
        start, end = "<start_of_text>", "<end_of_text>"  # open_clip's names
        return CLIPTokenizer(tokenizer.encoder, list(tokenizer.bpe_ranks), model_max_length=tokenizer.context_length,
                             bos_token=start, eos_token=end, unk_token=end, pad_token=end)  # fmt: skip
    return getattr(tokenizer, "tokenizer", tokenizer)
