"""The official release and Pick-a-Pic v2, on small folders made in exactly their layouts."""

import os
import pickle
import sys

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT, execute, printed_by
from icthp import images
from icthp.data import pairs, published
from icthp.data.triplets import Triplets, write_triplets

# ---- the official release --------------------------------------------------------------------------------------------

LABELS = {"E1": [0.3, 0.4], "E2": [0.5, 0.4], "R1": [0.24, 0.2], "R2": [0.4, 0.2]}


def release(folder, **columns):
    """{folder}/test.pkl with two rows, and their pictures: JPEG for I1 and I2, a larger PNG for I3."""
    frame = pd.DataFrame({
        "easy_prompt": ["a cat", "a dog"], "refine_prompt": ["a cat at dusk", "a dog at dusk"], "easy_image_0": ["0.jpg", "3.jpg"],
        "easy_image_1": ["1.jpg", "4.jpg"], "refine_image": ["2.png", "5.png"]} | LABELS | columns)  # fmt: skip
    frame.to_pickle(folder / "test.pkl")
    for place, names in (("pick_easy_img", ("0.jpg", "1.jpg", "3.jpg", "4.jpg")), ("pick_refine_img", ("2.png", "5.png"))):
        (folder / place / "test").mkdir(parents=True, exist_ok=True)
        for name in names:
            Image.new("RGB", (64, 64) if place == "pick_easy_img" else (96, 96), "red").save(folder / place / "test" / name)
    return frame


def read(folder):
    rejects = []
    return list(published.read_pick_high(folder, "test", rejects)), rejects


def test_the_release_becomes_our_table_with_e2_where_e2_belongs(tmp_path):
    release(tmp_path)
    rejects = []
    assert write_triplets(published.read_pick_high(tmp_path, "test", rejects), tmp_path / "ours", "test") == 2 and not rejects
    triplets = Triplets(tmp_path / "ours", "test", 64)
    easy, refined = triplets.labels()
    torch.testing.assert_close(easy, torch.tensor([[0.3, 0.5, 1], [0.4, 0.4, 1]]))
    torch.testing.assert_close(refined, torch.tensor([[0.24, 0.4, 1], [0.2, 0.2, 1]]))
    assert triplets.texts["refined"] == ["a cat at dusk", "a dog at dusk"] and triplets.rows["source_3"][0] == "Stable Diffusion 3.5 Large"
    assert triplets.rows[1]["image_3"].size == (96, 96) and triplets.rows[1]["image_3"].format == "PNG"
    assert triplets.pixels([0, 1]).shape == (3, 2, 3, 64, 64)


@pytest.mark.parametrize("columns, reason", [
    ({"E1": [0.3, 0.9]}, "E1 is above E2"), ({"E2": [0.5, 1.5]}, "E2 is above 1"), ({"R1": [0.24, 0.1]}, "R1 / E1 is not R2 / E2"),
    ({"R2": [0.4, np.nan]}, "a label is no number"), ({"easy_prompt": ["a cat", " "]}, "easy_prompt is empty"),
    ({"easy_prompt": ["a cat", None]}, "easy_prompt is empty"), ({"refine_prompt": ["a cat", np.nan]}, "refined_prompt is empty"),
    ({"E1": [0.3, "bad"]}, "a label is no number"), ({"easy_image_0": ["0.jpg", "\0"]}, "is missing"),
    ({"refine_image": ["2.png", "../../../../etc/passwd"]}, "image_3 '../../../../etc/passwd' leads outside"),
    ({"refine_image": ["2.png", "/etc/passwd"]}, "image_3 '/etc/passwd' leads outside"),
    ({"easy_image_0": ["0.jpg", "9.jpg"]}, "image_1 '9.jpg' is missing"), ({"easy_image_0": ["0.jpg", None]}, "is missing"),
    ({"easy_image_1": ["1.jpg", "x" * 5000]}, "is missing"), ({"E1": [0.3, 10**400]}, "a label is no number"),
    ({"R1": [0.24, [1]]}, "a label is no number"), ({"easy_prompt": ["a cat", 7]}, "easy_prompt is empty"),
    ({"easy_prompt": pd.Series(["a cat", "a \ud800"], dtype=object)}, "easy_prompt holds half a character"),
    ({"easy_image_0": pd.Series(["0.jpg", "\ud800.jpg"], dtype=object)}, "is missing")])  # fmt: skip
def test_a_bad_row_is_left_out_and_reported(tmp_path, columns, reason):
    release(tmp_path, **columns)
    rows, rejects = read(tmp_path)
    assert [row["prompt_id"] for row in rows] == [0] and [r["prompt_id"] for r in rejects] == [1] and reason in rejects[0]["reason"]


def test_a_truncated_picture_is_left_out_and_reported(tmp_path):
    release(tmp_path)
    path = tmp_path / "pick_easy_img/test/4.jpg"
    path.write_bytes(path.read_bytes()[:-100])
    rows, rejects = read(tmp_path)
    assert len(rows) == 1 and rejects[0]["reason"].startswith("image_2 cannot be read:")


class Hostile:
    def __init__(self, function, *arguments):
        self.call = function, arguments

    def __reduce__(self):
        return self.call


@pytest.mark.parametrize("call", [(os.system, "true"), (eval, "1"), (getattr, "x", "upper"), (pd.read_pickle, "x"), (np.load, "x"),
                                  (pd.eval, "1"), (__import__, "os"), (np.memmap, "x"), (pd.HDFStore, "x")])  # fmt: skip
def test_a_hostile_pickle_is_refused(tmp_path, call):
    (tmp_path / "test.pkl").write_bytes(pickle.dumps(Hostile(*call)))
    with pytest.raises(pickle.UnpicklingError, match=rf"{call[0].__name__}.*hostile"):
        read(tmp_path)


def test_a_pickle_imports_no_module(tmp_path):
    (tmp_path / "test.pkl").write_bytes(b"cnumpy.f2py.__main__\ndtype\n.")
    with pytest.raises(ValueError, match=r"test\.pkl .* holds a dtype"):
        read(tmp_path)
    assert "numpy.f2py.__main__" not in sys.modules


@pytest.mark.parametrize("contents", [pickle.dumps({"a": 1}), b"", b"\x1f\x8b\x08\0", b"no pickle"])
def test_a_table_that_is_none_is_named(tmp_path, contents):
    (tmp_path / "test.pkl").write_bytes(contents)
    with pytest.raises(ValueError, match=r"test\.pkl is no pickled table"):
        read(tmp_path)


def test_a_missing_release_or_column_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"test\.pkl is missing"):
        read(tmp_path)
    release(tmp_path).drop(columns="E2").to_pickle(tmp_path / "test.pkl")
    with pytest.raises(ValueError, match="no column E2"):
        read(tmp_path)


# ---- Pick-a-Pic v2 ---------------------------------------------------------------------------------------------------


def pickapic(folder, **columns):
    """A shard in Pick-a-Pic v2's layout: three votes, for the first picture in the first and the last."""
    jpeg = lambda colour: images.encode(torch.tensor(colour).view(1, 3, 1, 1).expand(1, 3, 32, 32), "JPEG")[0]["bytes"]
    n = 3
    frame = pd.DataFrame({
        "are_different": [True] * n, "best_image_uid": ["u"] * n, "caption": ["a cat", "a dog", "a cow"],
        "created_at": pd.to_datetime(["2023-03-01"] * n), "has_label": [True] * n, "image_0_uid": ["u"] * n, "image_0_url": [""] * n,
        "image_1_uid": ["v"] * n, "image_1_url": [""] * n, "jpg_0": [jpeg([1.0, 0.0, 0.0])] * n, "jpg_1": [jpeg([0.0, 0.0, 1.0])] * n,
        "label_0": [1.0, 0.0, 1.0], "label_1": [0.0, 1.0, 0.0], "model_0": ["sdxl"] * n, "model_1": ["sd21"] * n,
        "ranking_id": [7] * n, "user_id": [1] * n, "num_example_per_prompt": [1] * n,
        "__index_level_0__": list(range(n))} | columns)  # fmt: skip
    (folder / "data").mkdir(exist_ok=True)
    frame.to_parquet(folder / "data/test-00000-of-00001-abc.parquet")
    return frame


def test_votes_become_pairs_with_the_chosen_picture_second(tmp_path):
    pickapic(tmp_path)
    rejects = []
    votes = published.read_pickapic(tmp_path, "test", rejects)
    assert write_triplets(votes, tmp_path / "ours", "test", pairs.PAIRS) == 3 and not rejects
    rows = pairs.read_pairs(tmp_path / "ours", "test")
    assert rows["source_2"][:] == ["sdxl", "sd21", "sdxl"] and rows["source_1"][:] == ["sd21", "sdxl", "sd21"]
    red = [np.asarray(image)[0, 0, 0] > 200 for image in rows["image_2"]]
    assert red == [True, False, True] and rows["prompt_id"][:] == [0, 1, 2] and rows["agreed"][0] is None


@pytest.mark.parametrize("columns, reason", [
    ({"has_label": [True, False, True]}, "no vote"), ({"label_0": [1, 0.5, 1.0], "label_1": [0, 0.5, 0.0]}, "a tie"),
    ({"caption": ["a cat", "", "a cow"]}, "easy_prompt is empty"),
    ({"caption": ["a cat", None, "a cow"]}, "easy_prompt is empty"), ({"caption": [1, 2, 3]}, "easy_prompt is empty"),
    ({"jpg_0": [b"\xff\xd8", b"", None]}, "image_1 cannot be read"), ({"jpg_0": ["a text"] * 3}, "image_1 is no bytes of a file"),
    ({"jpg_1": [{"bytes": None, "path": None}] * 3}, "image_2 cannot be read"),
    ({"jpg_1": [{"bytes": None, "path": "/etc/passwd"}] * 3}, "image_2 cannot be read"),
    ({"label_0": ["1", "0", "1"]}, "a label is no number"), ({"label_1": [None, None, 0.0]}, "a label is no number"),
    ({"label_0": [[1], [0], [1]]}, "a label is no number"), ({"has_label": ["True", "yes", ""]}, "a label is no number"),
    ({"has_label": [True, None, True]}, "no vote")])  # fmt: skip
def test_rows_without_a_vote_or_a_picture_are_reported(tmp_path, columns, reason):
    pickapic(tmp_path, **columns)
    rejects = []
    rows = list(published.read_pickapic(tmp_path, "test", rejects))
    reasons = {reject["prompt_id"]: reject["reason"] for reject in rejects}
    assert len(rows) + len(rejects) == 3 and reason in reasons[1]


def test_pictures_as_datasets_wraps_them_and_models_without_a_name_are_read(tmp_path):
    plain = pickapic(tmp_path)
    pickapic(tmp_path, jpg_0=[{"bytes": b, "path": "x.jpg"} for b in plain.jpg_0], model_0=[None] * 3, model_1=[4, 5, 6])
    rows = list(published.read_pickapic(tmp_path, "test", []))
    assert [row["image_2"]["bytes"] for row in rows] == [plain.jpg_0[0], plain.jpg_1[1], plain.jpg_0[2]]
    assert [(row["source_1"], row["source_2"]) for row in rows] == [("4", "unknown"), ("unknown", "5"), ("6", "unknown")]


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b"PAR1 junk", lambda b: b[:-20], lambda b: b[:200] + b"\xff" * 300 + b[500:]])
def test_a_damaged_shard_is_named(tmp_path, damage):
    pickapic(tmp_path)
    path = tmp_path / "data/test-00000-of-00001-abc.parquet"
    path.write_bytes(damage(path.read_bytes()))
    with pytest.raises(ValueError, match=r"abc\.parquet is no shard of Pick-a-Pic v2 that can be read; download it again"):
        list(published.read_pickapic(tmp_path, "test", []))


def test_a_folder_that_is_no_pickapic_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="a download of Pick-a-Pic v2"):
        list(published.read_pickapic(tmp_path, "test", []))
    pickapic(tmp_path).drop(columns="label_1").to_parquet(tmp_path / "data/test-00000-of-00001-abc.parquet")
    with pytest.raises(ValueError, match="no column label_1"):
        list(published.read_pickapic(tmp_path, "test", []))


@pytest.mark.slow
def test_a4_writes_both_and_lists_what_it_left_out(tmp_path):
    release(tmp_path, E1=[0.3, 0.9])
    pickapic(tmp_path, has_label=[True, False, True])
    folders = {"official": str(tmp_path), "official_splits": "test", "pickapic": str(tmp_path), "pickapic_splits": "test"}
    executed = execute(ROOT / "notebooks/A4_published_data.ipynb", out=str(tmp_path / "out"), **folders)
    assert "3 rows written, 2 left out" in printed_by(executed)
    assert pd.read_csv(tmp_path / "out/rejects.csv").reason.tolist() == ["E1 is above E2", "no vote"]
    loaded = datasets.load_dataset(str(tmp_path / "out/pick_high"), cache_dir=str(tmp_path / "cache"))
    assert loaded["test"].num_rows == 1 and pairs.read_pairs(tmp_path / "out/pairs", "test").num_rows == 2
