"""The bridge between params.yaml and papermill: `python -m icthp.run NOTEBOOK [SECTION] [name=value ...]`.

Runs a notebook from the project's root with the parameters of its section. The file is read as YAML 1.2, as dvc does, so
1e-5 is a float and false is False; papermill's own -p and -f would make strings of them.
"""

import ast
import inspect
import os
import sys
from pathlib import Path

import nbformat
import papermill
from papermill.exceptions import PapermillExecutionError
from ruamel.yaml import YAML

TRAINING = ("seed", "precision")  # what every training takes of them
SHARED = "shared"  # the section whose values a notebook takes when it declares them


def enter_project() -> Path:
    """Make the project's root (the folder of params.yaml, here or above) the working directory, in any front end."""
    here = Path.cwd()
    root = next((p for p in (here, *here.parents) if (p / "params.yaml").exists()), None)
    if root is None:
        raise FileNotFoundError(f"no params.yaml in {here} or above it: open the notebook inside the project")
    os.chdir(root)
    return root


def need(path, stage: str) -> Path:
    """`path`, or one sentence that says which stage makes it."""
    if not Path(path).exists():
        raise FileNotFoundError(f"{path} is missing: `dvc repro {stage}` makes it (or run that notebook first)")
    return Path(path)


def declared(notebook) -> list[str]:
    """Names that the notebook's one cell tagged `parameters` assigns."""
    cells = [c for c in nbformat.read(notebook, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    if len(cells) != 1:
        raise ValueError(f"{notebook} has {len(cells)} cells tagged `parameters`; it needs exactly one")
    assigned = [node for node in ast.parse(cells[0].source).body if isinstance(node, ast.Assign)]
    return [target.id for node in assigned for target in node.targets]


def parameters(notebook, section: str, extra: dict) -> dict:
    """The section's values, the shared ones that the notebook declares, and `extra`; all and only what it declares."""
    params = YAML(typ="safe").load(Path("params.yaml"))
    if section not in params:
        raise KeyError(f"params.yaml has no section {section!r}; it has {', '.join(params)}")
    names = declared(notebook)
    shared = {k: v for k, v in params.get(SHARED, {}).items() if k in names}
    values = shared | params[section] | extra
    unknown, missing = sorted(set(values) - set(names)), sorted(set(names) - set(values))
    if unknown:
        raise ValueError(f"{section} in params.yaml sets {', '.join(unknown)}, which {notebook} does not declare")
    if missing:
        raise ValueError(f"{notebook} declares {', '.join(missing)}, which {section} in params.yaml does not set")
    return values


def arguments(function, section: str, extra: dict) -> dict:
    """The section's values, the shared ones that `function` or the training loop takes by name, and `extra`."""
    params = YAML(typ="safe").load(Path("params.yaml"))
    names = inspect.signature(function).parameters
    return {k: v for k, v in params[SHARED].items() if k in names or k in TRAINING} | params[section] | extra


def run(notebook, section: str, output=None, **extra) -> Path:
    """Execute `notebook` with `section`; the executed copy goes to `output` (default runs/notebooks/NAME.ipynb)."""
    notebook = Path(notebook)
    output = Path(output or Path("runs/notebooks") / ("-".join([notebook.stem, *map(str, extra.values())]) + ".ipynb"))
    output.parent.mkdir(parents=True, exist_ok=True)
    papermill.execute_notebook(
        str(notebook), str(output), parameters=parameters(notebook, section, extra), kernel_name="python3", language="python",
        cwd=str(enter_project()), autosave_cell_every=60, log_output=True, stdout_file=sys.stdout, stderr_file=sys.stderr)  # fmt: skip
    return output


def value(pair: str) -> tuple:
    """name=value, read as params.yaml would read it."""
    name, equals, value = pair.partition("=")
    if not equals:
        raise ValueError(f"{pair!r} is no parameter; write name=value")
    return name, YAML(typ="safe").load(value) if value else ""


def main(argv: list[str]) -> int:
    if len(argv) < 2:
        print(__doc__)
        return 2
    notebook, section, *pairs = argv
    try:
        extra = dict(value(pair) for pair in pairs)
        print(f"{notebook} -> {run(notebook, section, **extra)}")
    except PapermillExecutionError as error:
        print(f"{notebook}, cell {error.exec_count}: {error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    except (ValueError, KeyError, FileNotFoundError) as error:
        print(f"{notebook}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
