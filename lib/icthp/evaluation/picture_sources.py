"""Where pictures and prompts come from: a folder, with folders inside and prompts beside the pictures, a table, a data set.

In a folder a picture's prompt is what the file nearest to it says, in this order:

1. `a.txt` beside `a.png`.
2. The row that names it in a `metadata.csv` or `metadata.jsonl` of its folder or of the nearest folder above. The layout is that of
   datasets' imagefolder: `file_name`, relative to the table, and `prompt`, `text` or `caption`, the first of these that the table has.
3. `prompt.txt` of its folder or of the nearest folder above: one prompt for all pictures that have no other.

An empty cell says nothing, and the next of these files is asked. A text file that is there and cannot be read hides the next ones: its
pictures have no prompt, and a sentence names the file. So do tables of one folder that contradict each other.
"""

import os
import re
from collections import Counter
from collections.abc import Iterator
from pathlib import Path

import pandas as pd

from icthp import images, tables
from icthp.data.sources import read_dataset
from icthp.evaluation import geneval

DEFAULT = "prompt.txt"
METADATA = ("metadata.csv", "metadata.jsonl")
TEXTS = ("prompt", "text", "caption")
PROMPT_BYTES = 20_000  # of a file, or characters of a cell: what is longer is no prompt
METADATA_BYTES = 1 << 27
SPLIT = r"[\w.-]+(?:\[[^\]]*\])?(?:\(\w+\))?"  # train, train[:2], train[10%:20%](pct1_dropremainder)


def read(source: str, out) -> pd.DataFrame:
    """image (full path) and prompt (None if it is missing) of a folder of pictures with the prompts beside them (`read_folder`), a csv,
    jsonl or parquet table (`images.read_table`), a folder in GenEval's layout, or "dataset:NAME:SPLIT", a Hub dataset or a local folder
    of one with a column `image` and perhaps `prompt`, whose pictures are put into `out`/pictures (`read_dataset`). attrs["left_out"]:
    of a folder, {what is not among the rows: how many}."""
    if source.startswith("dataset:"):
        match = re.fullmatch(rf"dataset:(.+):({SPLIT}(?:\+{SPLIT})*)", source)
        if not match:
            raise ValueError(f"{source} names no split: say dataset:NAME:SPLIT")
        return read_dataset(*match.groups(), Path(out))
    if not Path(source).is_dir():
        return images.read_table(source)
    if any(file.with_name("samples").is_dir() for file in Path(source).glob("[0-9]*/metadata.jsonl")):
        return geneval.read_folder(source)[["image", "prompt"]]
    return read_folder(source, out)


def read_folder(source, out=None) -> pd.DataFrame:
    """image (the full path), prompt (None if there is none) and folder (relative, "." for the folder itself) of each picture, at any
    depth. Hidden entries and the folder `out` are skipped; links are followed to files inside `source` alone.

    attrs["left_out"]: {what is not among the rows: how many}. attrs["problems"]: a sentence for each file or table of prompts that
    cannot be used, and for each contradiction."""
    return _Album(Path(source), out).read()


class _Album:
    def __init__(self, root: Path, out):
        self.root = root
        self.inside = root.resolve()
        self.out = None if out is None else Path(out).resolve()
        self.left_out = Counter()
        self.problems = []
        self.defaults = {}  # {folder: the prompt of its pictures that have no other}
        self.named = {}  # {picture: {prompt: the table that says it}} of the nearest folder whose tables name the picture

    def read(self) -> pd.DataFrame:
        rows = [row for folder, names in self._folders() for row in self._rows(folder, names)]
        self._report_strangers({image for image, _, _ in rows})
        rows = [(images.path_text(image), prompt, folder) for image, prompt, folder in rows]
        table = pd.DataFrame(rows, columns=["image", "prompt", "folder"], dtype=object)
        table.attrs = {"left_out": dict(self.left_out), "problems": self.problems}
        return table

    def _note(self, sentence) -> None:
        """Keep a sentence that begins with a path, which is shown below the root, as text that every file can hold."""
        self.problems.append(images.path_text(str(sentence).removeprefix(f"{self.root}{os.sep}")))

    # ---- folders and pictures -------------------------------------------------------------------------------------

    def _folders(self) -> Iterator[tuple[Path, list[str]]]:
        """Each folder that is read, before those inside it, and the names of its files."""
        for place, folders, names in os.walk(self.root, onerror=self._count_unopened):
            folders[:] = [name for name in sorted(folders) if not self._is_skipped(Path(place, name))]
            yield Path(place), sorted(names)

    def _count_unopened(self, _error: OSError) -> None:
        self.left_out["folders that cannot be opened"] += 1

    def _is_skipped(self, folder: Path) -> bool:
        if folder.name.startswith("."):
            reason = "hidden folders"
        elif folder.is_symlink():
            reason = "links to folders"
        else:
            reason = "the folder of results" if folder.resolve() == self.out else ""
        self.left_out.update([reason] if reason else [])
        return bool(reason)

    def _rows(self, folder: Path, names: list[str]) -> list[tuple[Path, str | None, str]]:
        """(path, prompt, relative folder) of each picture of a folder."""
        self.defaults[folder] = self._text(folder / DEFAULT) if DEFAULT in names else self.defaults.get(folder.parent)
        self._read_metadata([folder / name for name in METADATA if name in names])
        reasons = {name: self._skip_reason(folder / name) for name in names}
        pictures = [folder / name for name, reason in reasons.items() if not reason]
        beside = {f"{picture.stem}.txt" for picture in pictures} & reasons.keys()
        prompts = {name: self._text(folder / name) for name in sorted(beside - {DEFAULT})}
        unused = reasons.keys() - {DEFAULT, *METADATA} - beside
        self.left_out.update(reasons[name] for name in sorted(unused) if reasons[name])
        relative = images.path_text(folder.relative_to(self.root))
        return [(p, prompts[f"{p.stem}.txt"] if f"{p.stem}.txt" in prompts else self._prompt(p), relative) for p in pictures]

    def _skip_reason(self, file: Path) -> str:
        try:
            return images.skip_reason(file) or ("links that lead out of the folder" if self._leads_out(file) else "")
        except OSError:
            return "files that cannot be opened"

    def _leads_out(self, file: Path) -> bool:
        return file.is_symlink() and not Path(os.path.realpath(file)).is_relative_to(self.inside)

    # ---- prompts ----------------------------------------------------------------------------------------------------

    def _prompt(self, picture: Path) -> str | None:
        """Of tables, or else the folder's."""
        prompts = self.named.get(picture)
        if prompts is None:
            return self.defaults[picture.parent]
        if len(prompts) == 1:
            return next(iter(prompts))
        places = " and ".join(sorted({table.name for table in prompts.values()}))
        self._note(f"{picture} has no prompt, for there are {len(prompts)} different ones in {places}; keep one")
        return None

    def _text(self, file: Path) -> str | None:
        """The prompt in a text file; None and a note for one that cannot be used."""
        try:
            text = self._contents(file, PROMPT_BYTES).strip()
            if not text:
                raise ValueError(f"{file} is empty: write a prompt into it, or delete it")
        except (OSError, ValueError) as error:
            self._note(error)
            return None
        return text

    def _contents(self, file: Path, limit: int) -> str:
        self._check(file, limit)
        return tables.decoded(file)

    def _check(self, file: Path, limit: int) -> None:
        """ValueError names a file of prompts that is not read: outside of the folder, no regular one, too long, closed to us."""
        if self._leads_out(file):
            raise ValueError(f"{file} is a link that leads out of the folder, and is not read")
        if not file.is_file():
            raise ValueError(f"{file} is no regular file, and is not read")
        if (size := file.stat().st_size) > limit:
            raise ValueError(f"{file} has {size:,} bytes; what holds prompts has at most {limit:,} here")
        if not os.access(file, os.R_OK):
            raise ValueError(f"{file} cannot be read: permission denied")

    def _read_metadata(self, files: list[Path]) -> None:
        found = {}
        for file in files:
            for picture, prompt in self._metadata_rows(file):
                found.setdefault(picture, {}).setdefault(prompt, file)
        self.named |= found

    def _metadata_rows(self, file: Path) -> list[tuple[Path, str]]:
        """(picture, prompt) of the rows that have both; a note for a table, or for each kind of row, that cannot be used."""
        try:
            self._check(file, METADATA_BYTES)
            names, prompts = _columns(file)
        except (OSError, ValueError) as error:
            self._note(error)
            return []
        faults = {}  # {what is wrong: the names in such rows}
        rows = []
        for name, prompt in zip(names, prompts):
            if fault := _fault(name, prompt):
                faults.setdefault(fault, []).append(name)
            elif prompt is not None and prompt.strip():
                rows.append((file.parent / os.path.normpath(name), prompt.strip()))
        for fault, wrong in faults.items():
            self._note(f"{file}: {fault}, in rows: {len(wrong)}; the first names {repr(wrong[0])[:80]}")
        return rows

    def _report_strangers(self, pictures: set[Path]) -> None:
        """A note for each table that names what is no picture here."""
        strangers = {}
        for picture, prompts in self.named.items():
            if picture not in pictures:
                strangers.setdefault(next(iter(prompts.values())), []).append(picture)
        for table, named in strangers.items():
            first = repr(str(named[0].relative_to(table.parent)))[:80]
            self._note(f"{table} names files that are no pictures of this folder: {len(named)}; the first is {first}")


def _columns(file: Path) -> tuple[list, list]:
    """file_name and the prompts of a table. ValueError names a table that has no such columns."""
    table = tables.TABLES[file.suffix](file)
    column = next((name for name in TEXTS if name in table), None)
    if "file_name" not in table or column is None:
        raise ValueError(f"{file} needs the columns file_name and one of {', '.join(TEXTS)}; it has {', '.join(map(str, table.columns))}")
    if not table.columns.is_unique:
        raise ValueError(f"{file} has a column twice; rename one")
    return table["file_name"].tolist(), table[column].tolist()


def _fault(name, prompt) -> str:
    """What is wrong with a row, "" for one that can be used."""
    if not isinstance(name, str) or not name:
        return "file_name names no file"
    if os.path.isabs(name) or os.path.normpath(name).split(os.sep)[0] == os.pardir:
        return "file_name lies outside of the table's folder"
    if prompt is None:
        return ""
    if not isinstance(prompt, str):
        return "the prompt is no text"
    if any("\ud800" <= c <= "\udfff" for c in prompt):
        return "the prompt holds half a character"
    return f"the prompt has more than {PROMPT_BYTES:,} characters" if len(prompt) > PROMPT_BYTES else ""
