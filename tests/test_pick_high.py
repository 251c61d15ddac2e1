import io
import os
import pickle

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from icthp import microworld, pick_high, pictures


@pytest.fixture(scope="module")
def table(scenes, tmp_path_factory):
    """A small table of triplets in the project's own schema, I3 of another size and format than I1 and I2."""
    pairs = pick_high.legacy_pairs(scenes[:6], torch.Generator().manual_seed(0))
    raw = pairs.cast_column("image_1", datasets.Image(decode=False)).cast_column("image_2", datasets.Image(decode=False))
    better = pictures.encode(microworld.render(scenes[:6].at(1), size=96))
    columns = {name: raw[name][:] for name in raw.column_names} | {
        "refined_prompt": microworld.captions(scenes[:6].at(1), "long"), "image_3": better,
        "clip_1": [0.1] * 6, "clip_2": [0.2] * 6, "text_sim": [0.5] * 6}  # fmt: skip
    path = tmp_path_factory.mktemp("triplets") / "test.parquet"
    datasets.Dataset.from_dict(columns, features=pick_high.TRIPLETS).to_parquet(path)
    return path


def test_triplets_decode_in_batches(table, scenes):
    triplets = pick_high.Triplets(table, 64)
    assert len(triplets) == 6 and triplets.pixels([0, 5]).shape == (3, 2, 3, 64, 64)
    assert torch.equal(triplets.pixels([5, 0])[:, 1], triplets.pixels([0])[:, 0])
    assert triplets.prompts("easy", [3]) == microworld.captions(scenes[3:4])
    assert triplets.numbers["clip_2"].tolist() == pytest.approx([0.2] * 6)


def test_rows_of_one_prompt_are_one_group(table, tmp_path):
    rows = datasets.Dataset.from_parquet(str(table)).select([0, 1, 0])
    rows.to_parquet(tmp_path / "t.parquet")
    groups = pick_high.Triplets(tmp_path / "t.parquet", 64).groups.tolist()
    assert groups[0] == groups[2] != groups[1]


def test_a_table_without_a_column_says_which(table, tmp_path):
    datasets.Dataset.from_parquet(str(table)).remove_columns("text_sim").to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="no column text_sim"):
        pick_high.Triplets(tmp_path / "t.parquet", 64)


def test_encode_is_lossless_in_png(scenes):
    pixels = microworld.render(scenes[:3])
    again = torch.stack([pictures.to_pixels(Image.open(io.BytesIO(row["bytes"]))) for row in pictures.encode(pixels)])
    assert (again - pixels).abs().max() <= 0.5 / 255 + 1e-6


def test_pairs_are_jpeg_and_hold_two_pictures(table):
    row = datasets.Dataset.from_parquet(str(table))[0]
    assert row["image_1"].format == row["image_2"].format == "JPEG" and row["image_3"].format == "PNG"


# ---- folders and tables ----------------------------------------------------------------------------------------------


@pytest.fixture
def folder(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (9, 7), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_is_a_table(folder):
    table = pictures.read_table(folder)
    assert [p.rsplit("/", 1)[1] for p in table.image] == ["a.jpg", "b.png"] and table.prompt.isna().all()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_tables_of_three_formats(folder, suffix):
    frame, path = pd.DataFrame({"image": ["a.jpg"], "prompt": ["a, b"]}), folder / f"t.{suffix}"
    {"csv": lambda: frame.to_csv(path, index=False), "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
     "parquet": lambda: frame.to_parquet(path)}[suffix]()  # fmt: skip
    table = pictures.read_table(path)
    assert table.image[0] == str(folder / "a.jpg") and table.prompt[0] == "a, b"


def test_bad_tables_are_named(folder):
    pd.DataFrame({"file": ["a.jpg"]}).to_csv(folder / "t.csv")
    with pytest.raises(ValueError, match="no column `image`"):
        pictures.read_table(folder / "t.csv")
    with pytest.raises(ValueError, match="neither a folder nor a table"):
        pictures.read_table(folder / "notes.txt")
    with pytest.raises(FileNotFoundError, match="give a folder"):
        pictures.read_table(folder / "nowhere")


@pytest.mark.parametrize("spoil", ["cut", "chunk", "empty"])
def test_a_broken_picture_is_named(folder, spoil):
    good = (folder / "b.png").read_bytes()
    bad = {"cut": good[:40], "chunk": good.replace(b"IDAT", b"ID\x01T"), "empty": b""}[spoil]
    (folder / "broken.png").write_bytes(bad)
    with pytest.raises(ValueError, match="broken.png cannot be read"):
        pictures.to_pixels(folder / "broken.png")


def test_a_huge_picture_is_named(folder, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(ValueError, match="b.png cannot be read"):
        pictures.to_pixels(folder / "b.png")


def test_sixteen_bits_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert torch.allclose(pictures.to_pixels(tmp_path / "deep.png")[1], torch.linspace(0, 1, 64).reshape(8, 8), atol=1 / 255)


def test_an_empty_cell_is_named(folder):
    (folder / "t.csv").write_text("image,prompt\na.jpg,x\n,y\n")
    with pytest.raises(ValueError, match="`image` names no file in row 1"):
        pictures.read_table(folder / "t.csv")


def test_odd_modes_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA", "LA", "CMYK", "1"):
        assert pictures.to_pixels(Image.new(mode, (5, 4))).shape == (3, 4, 5)


# ---- the official release --------------------------------------------------------------------------------------------


def release(folder, **columns):
    frame = pd.DataFrame({
        "easy_prompt": ["a cat"], "refine_prompt": ["a cat at dusk"], "easy_image_0": ["0.jpg"], "easy_image_1": ["1.jpg"],
        "refine_image": ["2.png"], "E1": [0.3], "E2": [0.5], "R1": [0.2], "R2": [0.4]} | columns)  # fmt: skip
    frame.to_pickle(folder / "test.pkl")
    return frame


def test_the_release_is_read_with_e2_where_e2_belongs(tmp_path):
    release(tmp_path)
    row = pick_high.read_official(tmp_path, "test")[0]
    assert (row["E2"], row["R1"]) == (0.5, 0.2)
    assert row["image_3"] == tmp_path / "pick_refine_img/test/2.png" and row["image_1"] == tmp_path / "pick_easy_img/test/0.jpg"


def test_frames_of_many_kinds_pass_the_restricted_reader(tmp_path):
    frame = pd.DataFrame({"s": ["é", None], "f": np.float32([1, 2]), "i": [1, 2], "b": [True, False], "o": [[1, "x"], {"k": 2}],
                          "c": pd.Categorical(["a", "b"]), "t": pd.to_datetime(["2025-01-01", "2025-01-02"]),
                          "n": pd.array([1, None])}, index=[5, 9])  # fmt: skip
    for protocol in range(2, 6):
        frame.to_pickle(tmp_path / "t.pkl", protocol=protocol)
        with open(tmp_path / "t.pkl", "rb") as file:
            pd.testing.assert_frame_equal(pick_high.FrameUnpickler(file).load(), frame)


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
        pick_high.read_official(tmp_path, "test")


def test_a_missing_release_or_column_is_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"train\.pkl is missing"):
        pick_high.read_official(tmp_path, "train")
    release(tmp_path).drop(columns="E2").to_pickle(tmp_path / "test.pkl")
    with pytest.raises(ValueError, match="no column E2"):
        pick_high.read_official(tmp_path, "test")


def test_picture_names_stay_inside_the_release(tmp_path):
    release(tmp_path, refine_image=["../../../etc/passwd"])
    with pytest.raises(ValueError, match="outside"):
        pick_high.read_official(tmp_path, "test")


def test_pairs_without_a_column_are_named(tmp_path, scenes):
    rows = pick_high.legacy_pairs(scenes[:3], torch.Generator().manual_seed(0))
    rows.add_column("extra", [1, 2, 3]).to_parquet(tmp_path / "all.parquet")
    assert pick_high.read_pairs(tmp_path / "all.parquet", 2).num_rows == 2
    assert pick_high.read_pairs(tmp_path / "all.parquet").column_names == list(pick_high.PAIRS)
    rows.remove_columns("agreed").to_parquet(tmp_path / "old.parquet")
    with pytest.raises(ValueError, match="old.parquet has no column agreed"):
        pick_high.read_pairs(tmp_path / "old.parquet")
