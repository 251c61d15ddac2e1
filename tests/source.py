"""The project's Python as text and as syntax trees, notebooks too; nothing is imported."""

import ast
import json
import re
from pathlib import Path


def python_of(path: Path) -> str:
    """The text of a .py file; the code cells of a notebook one after the other, their magics left out."""
    text = path.read_text(encoding="utf-8")
    if path.suffix != ".ipynb":
        return text
    cells = ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return re.sub(r"(?m)^(\s*)[%!].*$", r"\1pass", "\n".join(cells))


def trees(root: Path, *patterns: str) -> dict[str, ast.Module]:
    """Path below root -> syntax tree, of each file that one of the patterns names."""
    paths = sorted({path for pattern in patterns for path in root.glob(pattern)})
    return {path.relative_to(root).as_posix(): ast.parse(python_of(path)) for path in paths}
