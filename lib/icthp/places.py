"""What the parameters of params.yaml name: the folders and files that dvc watches (`watched` of the section `shared`), and digests of what
is in them. `python -m icthp.places PLACE` lists one of them, `python -m icthp.places REWARD FILE` writes what a reward names into FILE."""

import json
import os
import re
import sys
from pathlib import Path

from icthp.files import digest, save_json

LINK = "a link to "  # before a folder, in a listing
LISTINGS = Path("runs/places")  # a file for each of `watched`
OWN = ("runs", "models", "figures", "study")  # where stages write; dvc.yaml names what they read of it


def write_listing(place: str) -> Path:
    """runs/places/PLACE.json: of each file in the folder, or of the one file, that `place` is, a digest; of each link to a folder, where it
    leads, since dvc does not look behind it. ValueError where dvc would find the listing under another name, or where stages write."""
    if place != os.path.normpath(place) or place.startswith(".."):
        whole = os.path.normpath(place) if not place.startswith("..") else os.path.abspath(place)
        raise ValueError(f"params.yaml, shared: `watched` has {place}: write {whole}")
    root = Path(place)
    if _own(root):
        raise ValueError(f"params.yaml, shared: `watched` has {place}, which stages write: leave it out")
    found = sorted(file for file in root.rglob("*") if file.is_file() or _is_folder_link(file)) if root.is_dir() else [root]
    listing = {file.relative_to(root).as_posix(): _link(file) if _is_folder_link(file) else digest(file) for file in found}
    return save_json(_listing(place), listing)


def _is_folder_link(path: Path) -> bool:
    return path.is_symlink() and path.is_dir()


def _link(path: Path) -> str:
    return f"{LINK}{path.resolve()}"


def _listing(place: str) -> Path:
    return LISTINGS / f"{place.lstrip('/')}.json"


def contents(values: dict, watched: list[str]) -> dict[str, dict[str, str]]:
    """Of each parameter that names something: {the path: a digest of what is there}, by the listings. What stages of the pipeline write
    is left out, and the parameter `out`. ValueError names a parameter and its path where dvc watches neither it nor a folder above it."""
    named = {name: [path for path in named_paths(value) if not _own(path)] for name, value in sorted(values.items()) if name != "out"}
    return {name: {str(path): _digest(name, path, watched) for path in paths} for name, paths in named.items() if paths}


def named_paths(value) -> list[Path]:
    """The files and folders that exist under a parameter's value: a path, one with a word before or behind it (`local-dir:FOLDER`,
    `FILE.py:NAME`), several with commas between them, pairs `NAME=PATH` with spaces between them, or a list of such values."""
    texts = [text for text in (value if isinstance(value, list) else [value]) if isinstance(text, str)]
    pieces = [piece for text in texts for piece in (text, *text.split(","), *re.split(r"[\s,='\"]+", text))]
    found = set()
    for parts in (piece.split(":") for piece in pieces):
        candidates = (":".join(parts[i:j]).strip() for i in range(len(parts)) for j in range(i + 1, len(parts) + 1))
        found |= {Path(os.path.normpath(part)) for part in candidates if part and os.path.exists(part)}
    return sorted(found)


def _own(path: Path) -> bool:
    inside = os.path.relpath(path)
    return inside.split(os.sep)[0] in OWN


def _digest(name: str, path: Path, watched: list[str]) -> str:
    for place in watched:
        inside = Path(os.path.relpath(path, place))
        if inside.parts[:1] != ("..",):
            files = json.loads(_listing(place).read_text(encoding="utf-8"))
            _refuse_links(name, path, inside, files)
            return digest({key: value for key, value in files.items() if Path(key).is_relative_to(inside)})
    raise ValueError(f"params.yaml: {name} names {path}, which dvc does not watch: add it to the list `watched` of the section `shared`")


def _refuse_links(name: str, path: Path, inside: Path, files: dict[str, str]) -> None:
    """ValueError where a link to a folder lies on the way to `path`, or in it."""
    for key, value in files.items():
        if value.startswith(LINK) and (Path(key).is_relative_to(inside) or inside.is_relative_to(key)):
            remedy = "name the folder itself, and add it to the list `watched` of the section `shared`"
            raise ValueError(f"params.yaml: {name} names {path}, where {key} is {value}, and dvc does not look behind it: {remedy}")


def main(argv: list[str]) -> int:
    if len(argv) not in (1, 2):
        print(__doc__)
        return 2
    try:
        if len(argv) == 1:
            write_listing(argv[0])
        else:
            from icthp.params import read_params  # of the notebook tools

            save_json(argv[1], contents({"rewards": argv[0]}, read_params()["shared"]["watched"]))
    except (ValueError, OSError) as error:
        print(f"{argv[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
