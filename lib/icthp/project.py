"""The project: the folder that holds params.yaml, and that relative paths of parameters start from."""

from pathlib import Path


def project_root(here: Path) -> Path | None:
    """The nearest folder, `here` or above it, with params.yaml, dvc.yaml and lib, else the nearest with params.yaml; None outside of
    any project."""
    folders = [here, *here.parents]
    complete = (p for p in folders if all((p / name).exists() for name in ("params.yaml", "dvc.yaml", "lib")))
    return next(complete, None) or next((p for p in folders if (p / "params.yaml").exists()), None)
