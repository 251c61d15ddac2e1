"""`python tests/quick_copies.py`: the notebooks at smoke scale, for nbval, into runs/smoke/notebooks. Their parameters are those of
profiles/smoke.yaml, with every place of the pipeline moved below runs/smoke, so that no test touches what `make repro` has made."""

import sys
from pathlib import Path

import nbformat
from papermill.iorw import load_notebook_node
from papermill.parameterize import parameterize_notebook
from ruamel.yaml import YAML

from icthp import run
from icthp.params import coerce, read_params

FOLDER = Path("runs/smoke")
WITHOUT_STAGE = {  # notebook -> what makes it quick
    "00_playground": {"steps": 2, "batch": 2, "held_out": 4},
    "08_rivals": {"steps": 2, "batch": 4, "held_out": 8, "scale": "smoke"},
    "A2_score_your_images": {},
    "A4_published_data": {},
    "A5_your_own_reward": {"steps": 2, "batch": 2, "held_out": 8, "micro_scenes": 8, "scale": "smoke"},
}
OVER = {"rewards": "clip"}  # one tuned generator is enough


def sections() -> dict[str, str]:
    """Notebook -> its section of params.yaml."""
    pipeline = Path(__file__).parents[1] / "dvc.yaml"
    stages = YAML(typ="safe").load(pipeline.read_text(encoding="utf-8"))["stages"]["strip"]["foreach"]
    return {name: section for section, name in stages.items()} | {"A1_build_microworld": "build_microworld", "A3_benchmarks": "bench"}


def moved(value):
    """A parameter's value, below FOLDER where it names a place that the pipeline makes."""
    if not isinstance(value, str) or value.startswith(f"{FOLDER}/"):
        return value
    scheme, colon, place = value.rpartition(":")
    made = place.partition("/")[0] in ("runs", "models", "figures")
    return f"{scheme}{colon}{FOLDER}/{place.removeprefix('runs').lstrip('/')}".rstrip("/") if made else value


def quick_parameters(notebook: Path) -> dict:
    defaults = run.declared(notebook)
    values = dict(defaults)
    if section := sections().get(notebook.stem):
        values |= {name: coerce(name, defaults[name], value) for name, value in
                   run.section_values(read_params("profiles/smoke.yaml"), section, defaults).items()}  # fmt: skip
    else:
        values |= WITHOUT_STAGE[notebook.stem] | {"out": values["out"].replace("by_hand", "smoke")}
    return {name: moved(value) for name, value in values.items()} | {name: OVER[name] for name in OVER.keys() & defaults.keys()}


def main(folder=FOLDER / "notebooks") -> None:
    run.enter_project()
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    for notebook in sorted(Path("notebooks").glob("*.ipynb")):
        cells, values = load_notebook_node(str(notebook)), quick_parameters(notebook)
        copy = parameterize_notebook(cells, values, kernel_name="python3", language="python")
        nbformat.write(copy, folder / notebook.name)


if __name__ == "__main__":
    run.own_code()
    main(*sys.argv[1:])
