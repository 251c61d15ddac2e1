"""Tables of results, as frames whose cells are texts: "mean [low, high]"."""

import math

import pandas as pd

from .marks import minus, order_of
from .palette import label
from .published import ACCURACY, GENEVAL, PAIRS
from .tuned import ALONE
from .writing import format_ci

TRANSFER_MODELS = ["base", "ict_text", "first_alone", "ict_text_alone", "second_alone"]
TRANSFER_MEASURES = ["geneval_mean", "score_clip", "score_pickscore", "micro_richness", "micro_artefact"]
TUNING_MEASURES = [*(f"score_{name}" for name in ("clip", "pickscore", "ict", "hp", "icthp")), "jpeg_kb", "micro_richness",
                   "micro_artefact", "geneval_mean", "diversity", "vendi", "micro_utility", "step_seconds"]  # fmt: skip


def pivot_cells(rows: pd.DataFrame, index: str, columns: str) -> pd.DataFrame:
    """Rows with mean, low and high as a table of cells, in order of first appearance; a cell without rows is missing. A measure has as many
    digits as its largest mean needs for two that say something."""
    measure = rows["measure"] if "measure" in rows else pd.Series("", index=rows.index)
    digits = rows["mean"].abs().groupby(measure).transform("max").map(_digits)
    cells = rows.assign(cell=[format_ci(row, n) for row, n in zip(rows.to_dict("records"), digits)])
    return cells.pivot(index=index, columns=columns, values="cell").reindex(index=order_of(rows[index]), columns=order_of(rows[columns]))


def _digits(largest: float) -> int:
    """At least two behind the point; more for what is less than a tenth."""
    return 2 if not 1e-4 < largest < 0.1 else 1 - math.floor(math.log10(largest))


def tabulate_accuracy(accuracy: pd.DataFrame, versus: pd.DataFrame) -> pd.DataFrame:
    """A row a scorer: each pair, the mean of the three, the published ones, the p against CLIP. Frames as for `draw_accuracy`."""
    rows = accuracy[accuracy.control == "plain"]
    cells = pivot_cells(rows, "scorer", "pair").rename(columns=PAIRS)
    scorers = list(cells.index)
    published = ACCURACY.reindex(scorers)
    cells["mean of the columns"] = rows.groupby("scorer")["mean"].mean().map("{:.2f}".format)
    cells["published, mean of the columns"] = published.mean(axis=1).map("{:.2f}".format)
    cells["published, I2 > I1"] = published.i2_i1.map("{:.2f}".format)
    p = versus[(versus.against == "clip") & (versus.pair == "i2_i1")].set_index("scorer").p if len(versus) else pd.Series(dtype=float)
    cells["p, I2 > I1 against CLIP"] = p.reindex(scorers).map(_format_p)
    return cells.replace("nan", None).rename(index=label).rename_axis(index=None, columns=None)


def _format_p(p: float) -> str | None:
    return None if p != p else "< 0.01" if p < 0.01 else f"{p:.2f}"


def tabulate_tuned(tuned: pd.DataFrame) -> pd.DataFrame:
    """A row a measure, a column a generator. tuned: model, measure, mean, low, high."""
    rows = tuned[~tuned.model.str.endswith(ALONE) & ~tuned.measure.str.startswith("geneval")]
    return pivot_cells(rows, "measure", "model").rename(columns=label)


def tabulate_geneval(tuned: pd.DataFrame) -> pd.DataFrame:
    """A row a generator: GenEval's tasks and mean, ours and as published."""
    rows = tuned[~tuned.model.str.endswith(ALONE) & tuned.measure.str.startswith("geneval")]
    cells = pivot_cells(rows.assign(task=rows.measure.str.removeprefix("geneval_")), "model", "task")
    names = [*cells.index, *GENEVAL.index.difference(cells.index)]
    published = GENEVAL.map("{:.2f}".format).add_prefix("published_")
    return cells.join(published, how="outer").reindex(names).rename(index=label)


def tabulate_transfer(tuned: pd.DataFrame) -> pd.DataFrame:
    """A row a generator with ICT's text tower in the place of CLIP's, or with one text encoder alone, beside the untuned one; "less": the
    paired difference from it, for ICT's tower alone from CLIP's alone. Empty where no tower was exchanged."""
    if "ict_text" not in set(tuned.model):
        return pd.DataFrame()
    rows = tuned[tuned.model.isin(TRANSFER_MODELS) & tuned.measure.isin(TRANSFER_MEASURES)]
    less = pivot_cells(minus(rows), "model", "measure").add_suffix(", less")
    return pivot_cells(rows, "model", "measure").join(less).rename(index=label)


def tabulate_controls(controls: pd.DataFrame) -> pd.DataFrame:
    """A row a stage and control. controls: stage, row, measure, mean, low, high."""
    cells = controls.assign(cell=controls.apply(format_ci, axis=1)).pivot(index=["stage", "row"], columns="measure", values="cell")
    return cells.reindex(order_of(controls[["stage", "row"]].itertuples(index=False, name=None)))


def tabulate_tuning(effects: pd.DataFrame) -> pd.DataFrame:
    """A row a recipe of the study, its scores and what the detector reads."""
    return pivot_cells(effects, "row", "measure").reindex(columns=TUNING_MEASURES)
