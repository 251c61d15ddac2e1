"""What a stage depends on, in files that change when its numbers may: `python -m icthp.strip FILE FOLDER [SECTION]` writes, of a notebook
or a script X,

FOLDER/X.ipynb    the notebook without outputs, counts and what JupyterLab notes in it
FOLDER/X.modules  every module of icthp that it reaches, with a digest (see icthp.imports)
FOLDER/X.inputs   with a SECTION of params.yaml: the shared parameters that the notebook declares, and what its parameters name, with
                  a digest of the contents (see icthp.places)
"""

import ast
import sys
import warnings
from pathlib import Path

import nbformat
from nbstripout import strip_output

from icthp import run
from icthp.files import save_json, save_text
from icthp.imports import code_digest, reached
from icthp.params import read_params
from icthp.places import contents
from icthp.preflight import problems
from icthp.project import project_root

NO_NUMBER = ("icthp.run", "icthp.figures")  # how a notebook is run and what its figures look like; the stage `figures` counts the latter


def stripped(notebook) -> nbformat.NotebookNode:
    """The notebook without outputs, counts and ids, so that saving it in JupyterLab changes nothing. ValueError where it cannot be read."""
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)  # of nbformat, where cells have no ids
            cells = nbformat.read(notebook, as_version=nbformat.NO_CONVERT)
        return _without_metadata(strip_output(cells, keep_output=None, keep_count=None, keep_id=None))
    except (OSError, ValueError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{notebook} is no notebook that can be read: {str(error).partition(chr(10))[0][:200]}") from error


def _without_metadata(cells: nbformat.NotebookNode) -> nbformat.NotebookNode:
    """Without what front ends note, as folded cells; the tags stay, which say how a notebook runs."""
    cells.metadata = nbformat.NotebookNode()
    for cell in cells.cells:
        cell.metadata = nbformat.NotebookNode({name: value for name, value in cell.metadata.items() if name == "tags"})
    return cells


def code_of(cells: nbformat.NotebookNode) -> str:
    """The Python of all code cells. One that is no Python, as it stands or after IPython's magics are rewritten, is left out: its stage
    says so when it runs."""
    return "\n".join(_python(cell.source) for cell in cells.cells if cell.cell_type == "code")


def _python(source: str) -> str:
    for rewrite in (lambda text: text, _without_magics):
        try:
            ast.parse(rewrite(source))
            return rewrite(source)
        except SyntaxError:
            pass
    return ""


def _without_magics(source: str) -> str:
    from IPython.core.inputtransformer2 import TransformerManager

    return TransformerManager().transform_cell(source)


def modules(source: str, lib: Path, section: str = "", script: Path | None = None) -> dict[str, str]:
    """Each module of lib/icthp that the source reaches, and each script beside the `script` that it is: dotted name -> digest."""
    found = reached(source, lib, NO_NUMBER[:1] if section == "figures" else NO_NUMBER, script and script.parent)
    if script:
        found[script.stem] = script
    return {name: code_digest(found[name].read_text(encoding="utf-8")) for name in sorted(found)}


def inputs(params: dict, section: str, declared) -> dict[str, dict]:
    """`shared`: the shared parameters among the declared ones; `places`: what they and the section's name (see icthp.places.contents)."""
    shared = params[run.SHARED]
    values = run.section_values(params, section, declared)
    taken = {k: v for k, v in sorted(shared.items()) if k in declared or k == run.MICRO}
    return {"shared": taken, "places": contents(values, shared.get("watched", []))}


def strip(file: Path, folder: Path, section: str = "") -> None:
    """Write what the top of this module lists. Paths are from the working directory, parameters from the project's root."""
    root = project_root(Path.cwd()) or Path()
    is_notebook = file.suffix == ".ipynb"
    cells = stripped(file) if is_notebook else None
    source = code_of(cells) if is_notebook else file.read_text(encoding="utf-8")
    if is_notebook:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", UserWarning)
            save_text(folder / file.name, nbformat.writes(cells) + "\n")
    save_json(folder / f"{file.stem}.modules", modules(source, root / "lib", section, None if is_notebook else file))
    if section:
        params = read_params(root / "params.yaml")
        if found := problems(params):
            raise ValueError("; ".join(found))
        save_json(folder / f"{file.stem}.inputs", inputs(params, section, run.declared(file)))


def main(argv: list[str]) -> int:
    if len(argv) not in (2, 3):
        print(__doc__)
        return 2
    try:
        strip(Path(argv[0]), Path(argv[1]), *argv[2:])
    except (ValueError, OSError, SyntaxError) as error:
        print(f"{argv[0]}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    run.own_code()
    sys.exit(main(sys.argv[1:]))
