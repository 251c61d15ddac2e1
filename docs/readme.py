"""`make readme`: README.md and docs/*.md from the templates docs/*.md.j2, in which results are read from the files that hold them, and the
pictures that they show, into docs/pictures."""

import json
from pathlib import Path

import jinja2
import pandas as pd
import pictures

from icthp import figures, params


def text(row: dict, name: str, digits: int = 2) -> str:
    """ "mean [low, high]" where the row has an interval of that name, else the number."""
    if f"{name}_low" in row:
        return figures.format_ci({"mean": row[name], "low": row[f"{name}_low"], "high": row[f"{name}_high"]}, digits)
    return f"{row[name]:.{digits}f}"


class Results:
    """A file of metrics: results("name") with its interval, results.mean("name") without."""

    def __init__(self, file):
        self.row = json.loads(Path(file).read_text(encoding="utf-8"))

    def __call__(self, name: str, digits: int = 2) -> str:
        return text(self.row, name, digits)

    def mean(self, name: str, digits: int = 2) -> str:
        return f"{self.row[name]:.{digits}f}"


class Table:
    """A table of study/ with stage, row, measure, mean, low and high: table("ict", "base", "i2_i1"), "" where there is none."""

    def __init__(self, file):
        rows = pd.read_csv(file).rename(columns={"low": "mean_low", "high": "mean_high"})
        self.rows = rows.set_index(["stage", "row", "measure"])
        self.estimand = rows.estimand[0]

    def __call__(self, stage: str, row: str, measure: str, digits: int = 2) -> str:
        key = stage, row, measure
        return text(self.rows.loc[key], "mean", digits) if key in self.rows.index else ""

    def minus(self, *key: str, digits: int = 2) -> str:
        """How far the row lies from the stage's "corrected", with the p."""
        row = self.rows.loc[key]
        return f"{text(row, 'minus', digits)}, p = {row.minus_p_given_trainings:.2g}"

    def gain(self, row: str, measure: str, stage: str = "tuning", digits: int = 2) -> str:
        """How much more than the untuned generator's, with its interval."""
        return text(self.rows.loc[(stage, row, measure)], "minus", digits)

    def mean(self, *key: str, digits: int = 2) -> str:
        return f"{self.rows.loc[key, 'mean']:.{digits}f}"

    def best_first(self, stage: str, measure: str) -> list[str]:
        """The stage's rows, the highest mean first."""
        return self.rows.xs((stage, measure), level=("stage", "measure"))["mean"].sort_values(ascending=False).index.tolist()

    def above_zero(self, stage: str, measure: str) -> list[str]:
        """Those of them whose interval lies above 0."""
        return [row for row in self.best_first(stage, measure) if self.rows.loc[(stage, row, measure), "mean_low"] > 0]

    def ratio(self, row: str, peer: str, measure: str, stage: str = "tuning") -> str:
        return f"{self.rows.loc[(stage, row, measure), 'mean'] / self.rows.loc[(stage, peer, measure), 'mean']:.1f}"


class Benchmarks:
    """One machine's benchmarks: bench(what, size, peer) is "ours | the peer's label | its time | times faster"."""

    def __init__(self, file):
        self.rows = pd.read_csv(file).set_index(["what", "size", "peer"])[["ours ms", "peer ms", "ratio"]]
        self.facts = json.loads(Path(file).with_suffix(".json").read_text(encoding="utf-8"))

    def __call__(self, what: str, size: str, peer: str, label: str) -> str:
        ours, theirs, ratio = self.rows.loc[(what, size, peer)]
        return f"{seconds(ours)} | {label} | {seconds(theirs)} | {ratio:.1f}"


def votes(file) -> list[dict]:
    """A row a comparison: its readers' choices, "23, 24, 24"."""
    rows = pd.read_csv(file).groupby(["comparison", "prompt", "rows"], sort=False).chosen
    return rows.agg(lambda chosen: ", ".join(map(str, chosen))).reset_index().to_dict("records")


def of_gradient(runs) -> set[str]:
    """The ways to tune that asked for the reward's gradient."""
    runs = pd.read_csv(runs)
    return set(runs[runs.reward_gradients > 0].method)


def bench_of(file) -> dict:
    """What the bench of ways to tune holds: budgets and how many prompts it measures."""
    found = params.read_params(file)
    own, longer = found["bench"], found["longer"]
    prompts = {name: part["held_out"][1] - part["held_out"][0] for name, part in (("prompts", own), ("longer_prompts", longer))}
    return {"budget": own["budget"], "longer": longer["budget"], "end": f"equivalents={own['budget']}"} | prompts


def seconds(ms: float) -> str:
    return f"{ms / 1000:.2f} s" if ms >= 2000 else f"{ms:.3g} ms"


def facts(runs="runs", models="models", study="study", figures_folder="figures") -> dict:
    """What the templates may name."""
    values = params.read_params()
    return {
        "label": figures.label,
        "paradox": Results(f"{runs}/paradox/metrics.json"),
        "explanations": Results(f"{runs}/explanations/metrics.json"),
        "audit": Results(f"{runs}/pick_high/metrics.json"),
        "evaluate": Results(f"{runs}/evaluate/metrics.json"),
        "tuned": {name: Results(f"{models}/draft/{name}/metrics.json") for name in values["shared"]["rewards"]},
        "claims": pd.read_csv(f"{figures_folder}/claims.csv", keep_default_na=False).to_dict("records"),
        "steps": values["draft"]["steps"],
        "readers": votes(f"{study}/readers.csv"),
        "controls": Table(f"{study}/controls.csv"),
        "tuning": Table(f"{study}/tuning.csv"),
        "rivals": Table(f"{study}/rivals.csv"),
        "of_gradient": of_gradient(f"{study}/rivals_runs.csv"),
        "trial": bench_of(f"{study}/rivals.yaml"),
        "listing": lambda names: figures.listing(names) or "none",
        "bench": Benchmarks(f"{study}/benchmarks/Intel-R-Xeon-R-Processor.csv"),
    }


def pages(**folders) -> dict[Path, str]:
    """Each page with its text; README.md lies at the root, the others beside their templates."""
    environment = jinja2.Environment(loader=jinja2.FileSystemLoader("docs"), undefined=jinja2.StrictUndefined, trim_blocks=True,
                                     lstrip_blocks=True, keep_trailing_newline=True)  # fmt: skip
    known = facts(**folders)
    names = [template.stem for template in sorted(Path("docs").glob("*.md.j2"))]
    return {Path("" if name == "README.md" else "docs", name): environment.get_template(f"{name}.j2").render(**known) for name in names}


def main() -> None:
    for page, text in pages().items():
        page.write_text(text, encoding="utf-8")
    pictures.main()


if __name__ == "__main__":
    main()
