"""The bridge between params.yaml and papermill: `python -m icthp.run [--work] NOTEBOOK SECTION [name=value ...]`.

Runs a notebook from the project's root with the parameters of its section, of the types that the defaults in the notebook's own cell of
parameters have (see icthp.params). With --work, as one of several workers that share the notebook's long work, its cells up to the last
one tagged `shared-work`, on a GPU of its own: `torchrun --nproc_per_node 8 -m icthp.run --work ...`, on as many machines as see the same
files. What they have made the notebook itself then finds.
"""

import ast
import inspect
import os
import platform
import re
import sys
import zlib
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import nbformat
import papermill
from filelock import FileLock, Timeout
from nbclient.exceptions import DeadKernelError
from papermill.exceptions import PapermillExecutionError
from traitlets.config import Config

from icthp.files import save_text
from icthp.notebook_client import PollingClient
from icthp.params import KINDS, coerce, parse_arguments, read_params
from icthp.project import project_root

TRAINING = ("seed", "precision")  # what every training takes of them
KERNEL = Config(
    KernelManager={"transport_encryption": "auto", "client_factory": PollingClient},  # without "auto" every kernel warns
    NotebookClient={"extra_arguments": ["--log-level=CRITICAL"]},  # or one that is slow to end says that it was interrupted
)
HEADLINE = "headline"  # the tag of a cell whose output `main` prints
SHARED_WORK = "shared-work"  # the tag of a cell in which several workers may help
SOLUTION = "solution"  # the tag of an exercise's solution, about the microworld too
MICRO = "micro"  # the tag of a cell that needs the microworld, and the shared parameter that says whether it is there
LAUNCH = ("RANK", "WORLD_SIZE", "LOCAL_RANK", "LOCAL_WORLD_SIZE", "GROUP_RANK", "MASTER_ADDR", "MASTER_PORT")  # what torchrun sets
SHARED = "shared"  # the section whose values a notebook takes when it declares them


# ---- the project and its code -----------------------------------------------------------------------------------


def enter_project() -> Path:
    """Make the project's root the working directory, in any front end. FileNotFoundError outside of one; ImportError
    where the root has an icthp of its own and another one runs, as with one environment for two checkouts."""
    here = Path.cwd()
    root = project_root(here)
    if root is None:
        raise FileNotFoundError(f"no params.yaml in {here} or above it: open the notebook inside the project")
    if foreign(root):
        raise ImportError(f"the icthp that runs is {Path(__file__).parent}, not this project's own {root / 'lib/icthp'}: start with "
                          f"PYTHONPATH={root / 'lib'}, or from {root}/.venv, which `make .venv/ready` makes there")  # fmt: skip
    os.chdir(root)
    return root


def foreign(root: Path) -> bool:
    """Has `root` an icthp of its own that is not the one that runs?"""
    own = root / "lib/icthp"
    return own.exists() and own.resolve() != Path(__file__).resolve().parent


def own_code() -> None:
    """For a script, before anything else: begin again with the project's own icthp where another one was imported, as in a git worktree
    or in an experiment that dvc runs in a folder of its own. Once: what still runs another one then is refused by `enter_project`."""
    root = project_root(Path.cwd())
    paths = os.environ.get("PYTHONPATH", "").split(os.pathsep)
    if root and foreign(root) and paths[0] != str(root / "lib"):
        os.environ["PYTHONPATH"] = os.pathsep.join([str(root / "lib"), *filter(None, paths)])
        sys.stdout.flush()
        os.execv(sys.executable, [sys.executable, *sys.orig_argv[1:]])


def need(path, stage: str) -> Path:
    """`path`, or one sentence that says which stage or "make TARGET" makes it; for a .dvc file in place of a stage, how to fetch it."""
    if not Path(path).exists():
        made = f"`{stage}` makes it" if stage.startswith("make ") else f"`dvc repro {stage}` makes it (or run that notebook first)"
        remedy = f"`dvc pull {stage}` fetches it" if stage.endswith(".dvc") else made
        raise FileNotFoundError(f"{path} is missing: {remedy}")
    return Path(path)


# ---- notebooks and stages ---------------------------------------------------------------------------------------


def declared(notebook) -> dict:
    """What the notebook's one cell tagged `parameters` assigns: name -> default, None where that is no plain value. ValueError names a
    notebook that cannot be read, has no such cell, or more than one."""
    try:
        cells = [c for c in nbformat.read(notebook, as_version=4).cells if "parameters" in c.metadata.get("tags", [])]
    except (OSError, ValueError, TypeError, AttributeError, nbformat.ValidationError) as error:
        raise ValueError(f"{notebook} is no notebook that can be read: {str(error).partition(chr(10))[0][:200]}") from error
    if len(cells) != 1:
        raise ValueError(f"{notebook} has {len(cells)} cells tagged `parameters`; it needs exactly one")
    try:
        body = ast.parse(cells[0].source).body
    except SyntaxError as error:
        raise ValueError(f"{notebook}, line {error.lineno} of the cell of parameters: {error.msg}") from error
    assigned = [
        (n.targets if isinstance(n, ast.Assign) else [n.target], n.value) for n in body if isinstance(n, (ast.Assign, ast.AnnAssign))
    ]
    return {target.id: _literal(value) for targets, value in assigned for target in targets if isinstance(target, ast.Name)}


def _literal(value: ast.expr | None):
    try:
        return ast.literal_eval(value)
    except (ValueError, TypeError):
        return None


def _section(params: dict, name: str) -> dict:
    if name not in params:
        raise ValueError(f"params.yaml has no section {name!r}; it has {', '.join(params)}")
    return params[name]


def section_values(params: dict, section: str, names) -> dict:
    """The section's values, and those of the shared ones that are among `names`."""
    return {k: v for k, v in params.get(SHARED, {}).items() if k in names} | _section(params, section)


def parameters(notebook, section: str, extra: dict) -> dict:
    """The section's values, the shared ones that the notebook declares, and `extra`; all and only what it declares, of its types."""
    defaults = declared(notebook)
    values = section_values(read_params(), section, defaults) | extra
    unknown, missing = sorted(set(values) - set(defaults)), sorted(set(defaults) - set(values))
    if unknown:
        raise ValueError(f"{section} in params.yaml sets {', '.join(unknown)}, which {notebook} does not declare")
    if missing:
        raise ValueError(f"{notebook} declares {', '.join(missing)}, which {section} in params.yaml does not set")
    return {k: coerce(k, defaults[k], v, "" if k in extra else f"params.yaml, {section}: ") for k, v in values.items()}


def arguments(function, section: str, extra: dict | list[str], through=()) -> dict:
    """The section's values, the shared ones that `function` or the training loop takes by name, and `extra`, a dict or name=value pairs.
    The keywords of `function`, before those of the functions that it hands the rest on to, `through`, declare types."""
    takes = inspect.signature(function).parameters
    values = section_values(read_params(), section, {*takes, *TRAINING})
    defaults = dict(values)
    for each in reversed([function, *through]):
        keywords = [p for p in inspect.signature(each).parameters.values() if p.kind is p.KEYWORD_ONLY]
        defaults |= {p.name: _default(p, values.get(p.name)) for p in keywords}
    extra = extra if isinstance(extra, dict) else parse_arguments(extra, defaults, section)
    return {k: coerce(k, defaults.get(k), v, "" if k in extra else f"params.yaml, {section}: ") for k, v in (values | extra).items()}


def _default(keyword: inspect.Parameter, value):
    """A keyword's own; where it must be given, a value of its section or one of its annotated type, or a text."""
    if keyword.default is not keyword.empty:
        return value if keyword.default is None else keyword.default
    return value if value is not None else keyword.annotation() if keyword.annotation in KINDS else ""


def run(notebook, section: str, output=None, /, is_worker: bool = False, **extra) -> Path:
    """Execute `notebook` with `section`; the executed copy goes to `output`, by default to runs/notebooks under a name made of the
    notebook's and of extra's values. is_worker: only its cells up to the last one tagged `shared-work`; ValueError where none is."""
    notebook = _inside(notebook)
    values = parameters(notebook, section, extra)
    name = _clean("-".join([notebook.stem, *map(str, extra.values())]))
    name = f"{name}-worker-{_become_worker()}" if is_worker else name
    output = Path(output or f"runs/notebooks/{name}.ipynb")
    output.parent.mkdir(parents=True, exist_ok=True)
    with _alone(output):
        prepared = _prepared(notebook, output.with_suffix(".source.ipynb"), is_worker)
        source, target = (str(path).replace("{", "{{").replace("}", "}}") for path in (prepared, output))  # papermill formats paths
        papermill.execute_notebook(
            source, target, parameters=values, kernel_name="python3", language="python", cwd=str(Path.cwd()), autosave_cell_every=60,
            stderr_file=sys.stderr, config=KERNEL)  # fmt: skip
    return output


def _prepared(notebook: Path, copy: Path, is_worker: bool) -> Path:
    """The notebook, or a copy of it without what is not to run."""
    has_microworld = read_params()[SHARED].get(MICRO, True)
    if has_microworld and not is_worker:
        return notebook
    cells = nbformat.read(notebook, as_version=4)
    if is_worker:
        _keep_shared_work(cells, notebook)
    if not has_microworld:
        _leave_out_micro(cells)
    return save_text(copy, nbformat.writes(cells) + "\n")


def _tags(cell) -> list[str]:
    return cell.metadata.get("tags", [])


def _keep_shared_work(cells: nbformat.NotebookNode, notebook: Path) -> None:
    """Its cells up to the last one tagged `shared-work`."""
    tagged = [i for i, cell in enumerate(cells.cells) if SHARED_WORK in _tags(cell)]
    if not tagged:
        raise ValueError(f"{notebook} has no cell tagged `{SHARED_WORK}`: run it without --work")
    cells.cells = cells.cells[: tagged[-1] + 1]


def _leave_out_micro(cells: nbformat.NotebookNode) -> None:
    """The code of cells that need the microworld stands in the executed copy, and is not run; their prose goes."""
    cells.cells = [cell for cell in cells.cells if not (cell.cell_type == "markdown" and MICRO in _tags(cell))]
    for cell in cells.cells:
        if {MICRO, SOLUTION} & {*_tags(cell)}:
            cell.source = f"# Not run at this scale: it needs the microworld, whose truth is known.\n{cell.source}"
            cell.metadata["tags"] = [*_tags(cell), "skip-execution"]  # nbclient's own


def _become_worker() -> str:
    """A name for this worker. What torchrun says of a launch must not reach the notebook, whose workers share nothing but files; each
    takes the GPU of its local rank."""
    launch = {name: os.environ.pop(name) for name in LAUNCH if name in os.environ}
    if "LOCAL_RANK" in launch:
        visible = os.environ.get("CUDA_VISIBLE_DEVICES", "").split(",")
        rank = int(launch["LOCAL_RANK"])
        os.environ["CUDA_VISIBLE_DEVICES"] = visible[rank % len(visible)] if visible != [""] else str(rank)
    return f"{launch.get('RANK', os.getpid())}-{platform.node()}"


def headlines(executed) -> str:
    """The values of the cells tagged `headline` of an executed notebook, as text; its figures are in the notebook."""
    tagged = [cell for cell in nbformat.read(executed, as_version=4).cells if HEADLINE in cell.metadata.get("tags", [])]
    values = [output.data for cell in tagged for output in cell.outputs if output.output_type == "execute_result"]
    return "\n".join(data["text/plain"] for data in values)


@contextmanager
def _alone(output: Path) -> Iterator[None]:
    """Nobody else executes this notebook into this place: where dvc alone was killed its stage goes on, and a second `dvc repro` would
    write the same files."""
    try:
        with FileLock(output.with_suffix(".lock"), timeout=0):
            yield
    except Timeout:
        raise ValueError(f"{output} is being written by another run: wait until it ends, or stop it") from None


def _inside(notebook) -> Path:
    """Enter the project; the notebook, which may be named from where we were or from the root."""
    here, root = Path.cwd(), enter_project()
    return here / notebook if here != root and (here / notebook).exists() else Path(notebook)


def _clean(name: str) -> str:
    """A name of a file, of plain characters and at most 90 of them; a name that had to change ends in its checksum."""
    clean = re.sub(r"[^A-Za-z0-9._-]+", "_", name)[:80]
    return name if clean == name else f"{clean}-{zlib.crc32(name.encode()):08x}"


def main(argv: list[str]) -> int:
    is_worker = argv[:1] == ["--work"]
    argv = argv[is_worker:]
    if len(argv) < 2:
        print(__doc__)
        return 2
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # what a locale cannot print must not end a run
    notebook, section, *assignments = argv
    try:
        notebook = _inside(notebook)
        executed = run(notebook, section, is_worker=is_worker, **parse_arguments(assignments, declared(notebook), notebook))
        print(*filter(None, [f"{notebook} -> {executed}", headlines(executed)]), sep="\n")
    except PapermillExecutionError as error:
        print(f"{notebook}, cell {error.exec_count}: {error.ename}: {error.evalue}", file=sys.stderr)
        return 1
    except DeadKernelError:
        print(f"{notebook}: its process died, most often for want of memory", file=sys.stderr)
        return 1
    except (ValueError, OSError, ImportError) as error:
        print(f"{notebook}: {error}", file=sys.stderr)
        return 1
    return 0


if __name__ == "__main__":
    own_code()
    sys.exit(main(sys.argv[1:]))
