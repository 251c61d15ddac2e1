"""The study: every control is listed, trained, measured, written row by row and tabled."""

import inspect
import io
import json
import shutil
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image
from ruamel.yaml import YAML

from conftest import ROOT
from icthp import run, train

SHORT = {"steps": 2, "batch": 4, "lr": 1e-3, "warmup": 0, "validation": 0.2, "validate_every": 1}


def test_the_study_lists_its_rows_once():
    """study/dvc.yaml runs every row of study/params.yaml, whose options the stages know."""
    rows, stages = (YAML(typ="safe").load(ROOT / f"study/{name}.yaml") for name in ("params", "dvc"))
    with_models = {"ict": ["corrected"], "hp": stages["stages"]["hp_kept"]["matrix"]["row"]}
    for stage in ("ict", "hp"):
        matrix, named = stages["stages"][stage]["matrix"], rows[stage]
        assert sorted(with_models[stage] + matrix["row"]) == sorted(named) and matrix["seed"] == [0, 1, 2]
        known = inspect.signature(train.STAGES[stage]).parameters
        assert not {option for options in named.values() for option in options} - set(known)
    tuned = [row for row, options in rows["tuning"].items() if options]
    assert stages["stages"]["tune"]["matrix"] == stages["stages"]["tuned"]["matrix"] == {"row": tuned, "seed": [0, 1, 2]}
    assert set(rows["tuning"]) == {"base", *tuned} and stages["stages"]["untuned"]["matrix"] == {"seed": [0, 1, 2]}
    known = run.declared(ROOT / "notebooks/05_draft_k.ipynb")
    assert not {option for options in rows["tuning"].values() for option in options} - set(known)


def test_curves_of_tuning_are_means_over_seeds(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "study")
    import tuning

    monkeypatch.setattr(tuning, "RUNS", tmp_path)
    for row in ("clip", "clip_dpo"):
        for seed in (0, 1):
            history = {"val_loss": [None, 0.5 + seed, None, 1.0], "micro_richness": [None, 0.2, None, 0.4 + seed]}
            (tmp_path / f"{row}-{seed}/clip").mkdir(parents=True)
            pd.DataFrame({"step": range(4)} | history).to_parquet(tmp_path / f"{row}-{seed}/clip/history.parquet")
    found = tuning.curves(["clip", "clip_dpo"]).set_index(["row", "measure", "step"])
    last = found.loc[("clip", "micro_richness", 3)]
    assert last[["mean", "min", "max", "count"]].tolist() == pytest.approx([0.9, 0.4, 1.4, 2])
    assert found.loc[("clip_dpo", "val_loss", 1), "mean"] == 1 and 0 not in found.index.get_level_values("step")


def test_pictures_are_those_of_the_last_look_or_of_all(tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "study")
    import tuning

    monkeypatch.setattr(tuning, "RUNS", tmp_path)
    file = io.BytesIO()
    Image.new("RGB", (8, 8), "red").save(file, "PNG")
    shots = [{"step": step, "prompt": f"prompt {i}", "image": {"bytes": file.getvalue()}} for step in (20, 30, 40) for i in range(6)]
    for row in ("hp", *tuning.SHOWN):
        (tmp_path / f"{row}-0").mkdir()
        pd.DataFrame(shots).to_parquet(tmp_path / f"{row}-0/snapshots.parquet")
    steps = {row: tuning.pictures_of(row).groupby("step").size().to_dict() for row in ("hp", *tuning.SHOWN)}
    assert steps == {"hp": {40: tuning.PICTURES}} | {row: {20: tuning.PICTURES, 40: tuning.PICTURES} for row in tuning.SHOWN}
    assert tuning.pictures_of("ict").empty


def test_controls_are_trained_measured_and_tabled(triplets_folder, clip_folder, tmp_path, monkeypatch):
    monkeypatch.syspath_prepend(ROOT / "study")
    import controls

    clip = f"local-dir:{clip_folder}"
    config = SHORT | {"triplets": str(triplets_folder), "clip": clip}
    shared = {"triplets": str(triplets_folder), "clip": clip, "size": 64, "seed": 0}
    rows = {"ict": {"base": {}, "corrected": {}}, "hp": {"corrected": {}, "text": {"text_lambda": 1.0}, "statistics": {}, "icthp": {}}}
    (tmp_path / "study").mkdir()
    (tmp_path / "params.yaml").write_text(
        json.dumps({"shared": shared, "train_ict": config, "train_hp": config, "evaluate": {"micro_scenes": 3, "micro_voted_scenes": 3}})
    )
    (tmp_path / "study/params.yaml").write_text(json.dumps(rows | {"ict": rows["ict"] | {"later": {}}}))
    monkeypatch.chdir(tmp_path)
    for stage, named in rows.items():
        for row in named:
            (tmp_path / "study/runs" / stage).mkdir(parents=True, exist_ok=True)
            controls.main([stage, row, "0"])
    controls.main(["table"])
    table = pd.read_csv("study/controls.csv")
    values = pd.read_parquet("study/controls_rows.parquet")
    plain = values[(values.row == "corrected") & (values.stage == "ict") & (values.measure == "i2_i1")]
    row = table[(table.row == "corrected") & (table.stage == "ict") & (table.measure == "i2_i1")].iloc[0]
    assert row["mean"] == pytest.approx(plain.value.mean(), abs=1e-4) and row.lowest_seed <= row["mean"] <= row.highest_seed
    assert (row.n, row.groups) == (plain["index"].nunique(), plain.unit.nunique()) and row.estimand.startswith("mean over rows")
    shutil.rmtree("study/runs")
    controls.main(["table"])  # the written rows are enough
    assert pd.read_csv("study/controls.csv").drop(columns="commit").equals(table.drop(columns="commit"))
    assert set(zip(table.stage, table.row)) == {(stage, row) for stage, named in rows.items() for row in named}
    assert (table.low <= table.high).all()
    measures = {"i2_i1", "i3_i2", "i3_i1", "paradox_rate", "agrees_alignment", "agrees_quality"}
    assert set(table[table.row == "statistics"].measure) == measures
    base, own = (table[(table.stage == "ict") & (table.row == row)].set_index("measure") for row in ("base", "corrected"))
    assert (base.minus - (base["mean"] - own["mean"])).abs().max() < 2e-4 and own.minus.isna().all()


def rows_of(skill, seeds=(0, 1, 2), row="corrected"):
    """40 rows of ten prompts, one of them with 13 rows, and a skill a seed."""
    units = [f"p{i}" for i in range(9) for _ in range(3)] + ["long"] * 13
    return pd.concat([
        pd.DataFrame({"stage": "ict", "row": row, "seed": s, "measure": "i2_i1", "index": range(40), "unit": units,
                      "value": [float(i % 10 < 10 * skill(s)) for i in range(40)]}) for s in seeds])  # fmt: skip


def test_a_row_of_the_study_never_mixes_estimands(monkeypatch):
    """The mean lies among its own seeds, for all are means over rows; and trainings that differ widen the interval."""
    monkeypatch.syspath_prepend(ROOT / "study")
    import results

    apart, same = rows_of(lambda s: 0.3 + 0.2 * s), rows_of(lambda s: 0.5, row="same")
    table = results.summarise(pd.concat([apart, same]), {"ict": {"corrected": {}, "same": {}}}, "corrected").set_index("row")
    assert table.loc["corrected", ["lowest_seed", "mean", "highest_seed"]].tolist() == pytest.approx([0.3, 0.5, 0.7])
    assert (table.n == 40).all() and (table.groups == 10).all() and (table.seeds == 3).all()
    assert table.loc["corrected", "low"] < table.loc["same", "low"] and table.loc["corrected", "high"] > table.loc["same", "high"]
    assert table.loc["same", "minus"] == pytest.approx(0) and "minus_p_given_trainings" in table


@pytest.fixture
def kept(tmp_path, monkeypatch):
    """A study of one result, and what a probe of it would find; `dvc` notes that it was called."""
    monkeypatch.syspath_prepend(ROOT / "study")
    import keep

    values = pd.DataFrame({"measure": "i2_i1", "index": range(4), "unit": list("aabb"), "value": [0.0, 1.0, 0.5, 0.1]})
    (tmp_path / "study/runs/ict").mkdir(parents=True)
    (tmp_path / "params.yaml").write_text("shared: {}\n", encoding="utf-8")
    values.to_parquet(tmp_path / "study/runs/ict/corrected-0.parquet")
    monkeypatch.chdir(tmp_path)
    called = []
    dvc = lambda *command, **options: called.append((*command, options)) or SimpleNamespace(returncode=0)
    monkeypatch.setattr(keep.subprocess, "run", dvc)
    return keep, values, called, monkeypatch


def test_results_that_are_equal_to_the_last_digit_are_kept(kept, capsys):
    keep, values, called, monkeypatch = kept
    monkeypatch.setattr(keep, "probe", lambda *row: values.sample(frac=1, random_state=0))  # in another order
    assert keep.main([]) == 0 and called == [(["dvc", "commit", "-q", "-f"], {"cwd": "study"})]
    assert "are kept" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("change", "says"),
    [
        (lambda v: v.assign(value=v.value + [0, 0, 0, 1e-16 + 2e-17]), "i2_i1: 1 of 4 values differ, by 1.25e-16 at most"),
        (lambda v: v[:3], "i2_i1: 1 of 4 rows are in one of the two alone"),
        (lambda v: pd.concat([v, v.assign(measure="other")]), "other: 4 of 4 rows are in one of the two alone"),
        (lambda v: v.assign(value=[0.0, 1.0, 0.5, None]), "i2_i1: 1 of 4 values differ"),
    ],
)
def test_results_that_differ_are_told_and_nothing_is_kept(kept, capsys, change, says):
    keep, values, called, monkeypatch = kept
    monkeypatch.setattr(keep, "probe", lambda *row: change(values))
    assert keep.main([]) == 1 and called == [] and says in capsys.readouterr().err


def test_nothing_is_kept_of_a_study_that_never_ran(kept, capsys):
    keep, _, called, _ = kept
    assert keep.main(["hp", "corrected", "0"]) == 1 and called == []
    assert keep.main(["ict"]) == 1 and called == []
    assert "`make study` makes it" in capsys.readouterr().err


def test_todays_tables_of_the_study_say_their_estimand():
    for name in ("controls", "tuning"):
        table = pd.read_csv(ROOT / f"study/{name}.csv")
        assert table.estimand.nunique() == 1 and table.estimand[0].startswith("mean over ")


def test_a_sheet_hides_which_picture_is_which(tmp_path, monkeypatch):
    """White pictures are asked about, black ones are the others: the key says where the white ones lie, on both sides."""
    monkeypatch.syspath_prepend(ROOT / "study")
    import readers

    readers.sheets([f"prompt {i}" for i in range(8)], torch.ones(8, 3, 5, 7), torch.zeros(8, 3, 5, 7), tmp_path, seed=0)
    key = json.loads((tmp_path / "key.json").read_text())
    found = {}
    for sheet in (1, 2):
        picture = np.asarray(Image.open(tmp_path / f"{sheet}.png"))
        step = readers.SIDE + readers.MARGIN
        for line in range(picture.shape[0] // step):
            side_a, side_b = (picture[line * step + step // 2, readers.MARGIN + place * step + readers.SIDE // 2, 0] for place in (0, 1))
            assert {side_a, side_b} == {0, 255}
            found[str(len(found) + 1)] = "A" if side_a == 255 else "B"
    assert found == key and len(set(key.values())) == 2
