"""Triplets: labels, shards, batches, and the pairs that they are built from."""

import io
import shutil
import signal
import struct
import subprocess
import sys
import tempfile
import tracemalloc
import zlib

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from faulty_pairs import faulty_pairs
from icthp import images, losses
from icthp.data import parquet
from icthp.data.pairs import PAIRS, build_triplets, measure_triplets, read_pairs
from icthp.data.triplets import TRIPLETS, Triplets, write_dataset_card, write_triplets
from icthp.microworld import grammar, renderer
from icthp.scorers import loading

THETA = 0.6


@pytest.fixture(scope="module")
def pairs(scenes, tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    faulty_pairs(scenes[:6]).to_parquet(folder / "test.parquet")
    return folder


def build(pairs, scenes, clip_folder, units=None, **options):
    """Rows of triplets of six pairs, I3 of another size and format than I1 and I2."""
    drawn = images.encode(renderer.render(scenes[:6].at(1), size=96))
    constants = {"seed": 3, "split": "test", "source_3": "renderer"}
    table = read_pairs(pairs, "test")
    refined = grammar.captions(scenes[:6].at(1), "long")
    scorer = loading.load("clip", f"local-dir:{clip_folder}")
    with tempfile.TemporaryDirectory() as labels:
        measured = measure_triplets(table, refined, drawn, scorer, folder=labels, units=units)
    return list(build_triplets(table, refined, drawn, measured, theta=THETA, constants=constants, **options))


@pytest.fixture(scope="module")
def rows(pairs, scenes, clip_folder):
    return build(pairs, scenes, clip_folder, batch=4)


@pytest.fixture(scope="module")
def folder(rows, tmp_path_factory):
    folder = tmp_path_factory.mktemp("triplets")
    assert write_triplets(rows, folder, "test", shard=4) == 6
    return folder


def test_triplets_decode_in_batches(folder, scenes):
    triplets = Triplets(folder, "test", 64)
    assert len(triplets) == 6 and triplets.pixels([0, 5]).shape == (3, 2, 3, 64, 64)
    assert torch.equal(triplets.pixels([5, 0])[:, 1], triplets.pixels([0])[:, 0])
    assert triplets.prompts("easy", [3]) == grammar.captions(scenes[3:4])
    assert triplets.column("prompt_id").tolist() == list(range(6))


def test_labels_are_the_formulas_of_the_written_cosines(folder, clip_folder):
    triplets = Triplets(folder, "test", 64)
    cosines = [triplets.column(name) for name in ("clip_1", "clip_2", "text_sim")]
    for found, expected in zip(triplets.labels(), losses.ict_labels(*cosines, THETA)):
        torch.testing.assert_close(found, expected)
    scorer = loading.load("clip", f"local-dir:{clip_folder}")
    with torch.no_grad():
        again = scorer.score(triplets.pixels(range(6))[1], triplets.texts["easy"])
    torch.testing.assert_close(cosines[1], again, rtol=1e-3, atol=1e-4)


def test_released_labels_put_r1_where_e2_belongs(folder):
    triplets = Triplets(folder, "test", 64)
    (easy, refined), (paper, same) = triplets.labels("released"), triplets.labels()
    assert torch.equal(easy[:, 1], refined[:, 0]) and torch.equal(easy[:, [0, 2]], paper[:, [0, 2]]) and torch.equal(refined, same)
    with pytest.raises(ValueError, match='variant must be "paper"'):
        triplets.labels("other")


def test_unit_labels_make_i3_earn_its_1(pairs, scenes, clip_folder, tmp_path):
    shares = iter([[0.5, 1.0, 0.0, 1, 1, 1], [0.25, 1.0, 1.0, 1, 1, 1], [0.75, 0.5, 1.0, 1, 1, 1]])
    units = lambda prompts, pixels: torch.tensor(next(shares), dtype=torch.float32)
    write_triplets(build(pairs, scenes, clip_folder, units=units, near_miss=["near"] * 6), tmp_path, "test")
    triplets = Triplets(tmp_path, "test", 64)
    easy, refined = triplets.labels("units")
    assert easy[:2].tolist() == [[0.5, 0.25, 0.75], [1.0, 1.0, 0.5]]
    torch.testing.assert_close(refined[0, :2], easy[0, :2] * triplets.column("text_sim")[0])
    assert refined[:, 2].tolist() == easy[:, 2].tolist() and triplets.prompts("near", [0]) == ["near"]


def test_what_a_table_does_not_know_is_null(folder):
    triplets = Triplets(folder, "test", 64)
    assert triplets.texts["near"] == [None] * 6
    with pytest.raises(ValueError, match="which only the microworld"):
        triplets.labels("units")


def test_the_dataset_loads_as_the_hub_loads_it(folder, tmp_path):
    shutil.copytree(folder, tmp_path / "dataset")
    facts = dict(scale="test", generator="the renderer", voter="nobody", theta=THETA, formats="mixed")
    write_dataset_card(tmp_path / "dataset", {"test": 6}, **facts)
    loaded = datasets.load_dataset(str(tmp_path / "dataset"), cache_dir=str(tmp_path / "cache"))
    assert list(loaded) == ["test"] and loaded["test"].features == TRIPLETS and loaded["test"].num_rows == 6
    assert loaded["test"][5]["image_3"].size == (96, 96)
    card = (tmp_path / "dataset/README.md").read_text(encoding="utf-8")
    assert "| test | 6 |" in card and "by\nconstruction" in card and f"theta = {THETA}" in card


def test_a_shorter_table_leaves_no_old_shard(rows, tmp_path):
    write_triplets(rows, tmp_path, "test", shard=2)
    write_triplets(rows[:3], tmp_path, "train", shard=2)
    write_triplets(rows[:3], tmp_path, "test", shard=2)
    assert sorted(p.name for p in tmp_path.glob("*")) == [f"{s}-0000{i}.parquet" for s in ("test", "train") for i in (0, 1)]
    assert len(Triplets(tmp_path, "test", 64)) == 3


@pytest.mark.parametrize("change, reason", [
    ({"E1": 0.9, "E2": 0.5}, "E1 is above E2"), ({"E2": 1.2}, "E2 is above 1"), ({"R2": 0.99, "E2": 0.5, "E1": 0.1}, "R is larger than E"),
    ({"E1": 0.4, "E2": 0.8, "R1": 0.1, "R2": 0.6}, "R1 / E1 is not R2 / E2"), ({"R1": float("nan")}, "a label is no number"),
    ({"E1": None}, "E1 missing"), ({"refined_prompt": None, "seed": None}, "seed, refined_prompt missing"),
    ({"prompt_id": 1}, "its prompt_id is there twice")])  # fmt: skip
def test_a_row_that_breaks_an_invariant_is_not_written(rows, tmp_path, change, reason):
    bad = rows[4] | change
    with pytest.raises(ValueError, match=f"test, prompt_id {bad['prompt_id']}: .*{reason}"):
        write_triplets([*rows[:4], bad], tmp_path, "test")


def test_writing_streams(rows, tmp_path):
    """Ten times the rows take no more memory: a shard at a time is held."""

    def peak(n):
        tracemalloc.start()
        table = (rows[0] | {"prompt_id": i, "image_3": {"bytes": bytes(20_000 + i), "path": None}} for i in range(n))
        write_triplets(table, tmp_path, "train", shard=64)
        most = tracemalloc.get_traced_memory()[1]
        tracemalloc.stop()
        return most

    assert peak(1280) < 1.3 * peak(128)


def test_rows_of_one_prompt_are_one_group(rows, tmp_path):
    write_triplets([rows[0], rows[1], rows[0] | {"prompt_id": 9}], tmp_path, "t")
    groups = Triplets(tmp_path, "t", 64).groups.tolist()
    assert groups[0] == groups[2] != groups[1]


def test_a_table_without_a_column_or_a_file_says_which(folder, tmp_path):
    datasets.Dataset.from_parquet(str(folder / "test-00000.parquet")).remove_columns("text_sim").to_parquet(tmp_path / "t.parquet")
    with pytest.raises(ValueError, match="no column text_sim"):
        Triplets(tmp_path, "t", 64)
    with pytest.raises(FileNotFoundError, match="dvc repro pick_high"):
        Triplets(tmp_path, "train", 64)


KILLED = """
import os, sys
import icthp, torch
from icthp import data, microworld, pipelines, tuning

pairs, sd3, clip, out, deaths = *sys.argv[1:5], int(sys.argv[5])
torch.set_num_threads(1)
replace, alive = os.replace, iter(range(deaths))
os.replace = lambda *names: replace(*names) if next(alive, None) is not None else os.kill(os.getpid(), 9)
table = data.read_pairs(pairs, "test")
refined = microworld.captions(microworld.parse(list(table["easy_prompt"]), torch.Generator()), "long")
drawn = tuning.generate_shards(pipelines.load_pipeline(sd3), refined, list(table["prompt_id"]), out + "/i3", shard=2, steps=1)
constants = {"seed": 0, "split": "test", "source_3": sd3}
scorer = icthp.load("clip", f"local-dir:{clip}")
measured = data.measure_triplets(table, refined, drawn, scorer, folder=out + "/labels", batch=2)
rows = data.build_triplets(table, refined, drawn, measured, theta=0.6, constants=constants)
data.write_triplets(rows, out + "/dataset", "test", shard=2)
"""


def test_kill_9_and_again_gives_the_same_bytes(pairs, sd3_folder, clip_folder, tmp_path):
    """Six rows, shards of two: a process dies at its second file of pictures, others at the second of labels and the table's second."""
    run = lambda out, n: subprocess.run([sys.executable, "-c", KILLED, pairs, sd3_folder, clip_folder, tmp_path / out, str(n)]).returncode
    tables = lambda out: [p for p in (tmp_path / out).rglob("*.parquet") if ".partial" not in str(p)]
    files = lambda out: {p.relative_to(tmp_path / out): p.read_bytes() for p in tables(out)}
    assert run("whole", 99) == 0 and len(files("whole")) == 9
    for place, deaths in (("drawing", 1), ("labelling", 4), ("writing", 7)):
        assert run(place, deaths) == -signal.SIGKILL
        left = files(place)
        assert len(left) == deaths and left.items() <= files("whole").items()
        assert run(place, 99) == 0 and files(place) == files("whole")


def test_encode_is_lossless_in_png(scenes):
    pixels = renderer.render(scenes[:3])
    again = torch.stack([images.to_pixels(Image.open(io.BytesIO(row["bytes"]))) for row in images.encode(pixels)])
    assert (again - pixels).abs().max() <= 0.5 / 255 + 1e-6


def test_pairs_are_jpeg_and_hold_two_pictures(folder):
    row = datasets.Dataset.from_parquet(str(folder / "test-00000.parquet"))[0]
    assert row["image_1"].format == row["image_2"].format == "JPEG" and row["image_3"].format == "PNG"


# ---- folders and tables ----------------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path):
    for name in ("b.png", "a.jpg"):
        Image.new("RGB", (9, 7), "red").save(tmp_path / name)
    (tmp_path / "notes.txt").write_text("no picture")
    return tmp_path


def test_a_folder_is_a_table(album):
    table = images.read_table(album)
    assert [p.rsplit("/", 1)[1] for p in table.image] == ["a.jpg", "b.png"] and table.prompt.isna().all()


@pytest.mark.parametrize("suffix", ["csv", "jsonl", "parquet"])
def test_tables_of_three_formats(album, suffix):
    frame, path = pd.DataFrame({"image": ["a.jpg"], "prompt": ["a, b"]}), album / f"t.{suffix}"
    {"csv": lambda: frame.to_csv(path, index=False), "jsonl": lambda: frame.to_json(path, orient="records", lines=True),
     "parquet": lambda: frame.to_parquet(path)}[suffix]()  # fmt: skip
    table = images.read_table(path)
    assert table.image[0] == str(album / "a.jpg") and table.prompt[0] == "a, b"


def test_bad_tables_are_named(album):
    pd.DataFrame({"file": ["a.jpg"]}).to_csv(album / "t.csv")
    with pytest.raises(ValueError, match="no column `image`"):
        images.read_table(album / "t.csv")
    with pytest.raises(ValueError, match="neither a folder nor a table"):
        images.read_table(album / "notes.txt")
    with pytest.raises(FileNotFoundError, match="give a folder"):
        images.read_table(album / "nowhere")


@pytest.mark.parametrize("damage", ["cut", "chunk", "empty"])
def test_a_damaged_picture_is_named(album, damage):
    good = (album / "b.png").read_bytes()
    bad = {"cut": good[:40], "chunk": good.replace(b"IDAT", b"ID\x01T"), "empty": b""}[damage]
    (album / "damaged.png").write_bytes(bad)
    with pytest.raises(ValueError, match="damaged.png cannot be read"):
        images.to_pixels(album / "damaged.png")


def test_a_huge_picture_is_named(album, monkeypatch):
    monkeypatch.setattr(Image, "MAX_IMAGE_PIXELS", 30)
    with pytest.raises(ValueError, match="b.png cannot be read"):
        images.to_pixels(album / "b.png")


def test_sixteen_bits_keep_their_range(tmp_path):
    ramp = np.linspace(0, 65535, 64).reshape(8, 8).astype(np.uint16)
    Image.fromarray(ramp).save(tmp_path / "deep.png")
    assert torch.allclose(images.to_pixels(tmp_path / "deep.png")[1], torch.linspace(0, 1, 64).reshape(8, 8), atol=1 / 255)


def test_an_empty_cell_is_named(album):
    (album / "t.csv").write_text("image,prompt\na.jpg,x\n,y\n")
    with pytest.raises(ValueError, match="`image` names no file in row 1"):
        images.read_table(album / "t.csv")


def test_odd_modes_become_rgb(tmp_path):
    for mode in ("L", "P", "RGBA", "LA", "CMYK", "1"):
        assert images.to_pixels(Image.new(mode, (5, 4))).shape == (3, 4, 5)


# ---- pairs -----------------------------------------------------------------------------------------------------------


def test_pairs_may_lack_what_can_be_filled(tmp_path, pairs):
    rows = datasets.Dataset.from_parquet(str(pairs / "test.parquet"))
    fewer = rows.remove_columns(["prompt_id", "agreed", "source_1", "source_2"])
    fewer.add_column("extra", range(6)).to_parquet(tmp_path / "old-00000.parquet")
    found = read_pairs(tmp_path, "old", 4)
    assert found.features == PAIRS and found["prompt_id"][:] == [0, 1, 2, 3]
    assert found["agreed"][:] == [None] * 4 and found["source_2"][0] == str(tmp_path)
    rows.remove_columns("image_2").to_parquet(tmp_path / "less.parquet")
    with pytest.raises(ValueError, match="less.parquet has no column image_2"):
        read_pairs(tmp_path, "less")
    with pytest.raises(FileNotFoundError, match="dvc pull"):
        read_pairs(tmp_path, "train")


def test_duplicate_prompt_ids_are_named(tmp_path, pairs):
    rows = datasets.Dataset.from_parquet(str(pairs / "test.parquet")).remove_columns("prompt_id")
    rows.add_column("prompt_id", [0, 1, 2, 1, 4, 5]).to_parquet(tmp_path / "train.parquet")
    with pytest.raises(ValueError, match="train.parquet: prompt_id 1 is there twice"):
        read_pairs(tmp_path, "train")


def test_unreadable_pictures_are_found(tmp_path, pairs):
    rows = parquet.as_files(datasets.Dataset.from_parquet(str(pairs / "test.parquet"))).to_list()
    rows[1]["image_2"]["bytes"] = rows[1]["image_2"]["bytes"][:-300]
    rows[4]["image_1"]["bytes"] = bomb(30_000)
    errors = parquet.unreadable(datasets.Dataset.from_list(rows, features=PAIRS))
    assert [bool(error) for error in errors] == [False, True, False, False, True, False]
    assert errors[1].startswith("image_2 cannot be read: image file is truncated") and "decompression bomb" in errors[4]


def bomb(side: int) -> bytes:
    """A PNG of side x side black pixels, a hundred kilobytes long."""
    chunk = lambda kind, data: struct.pack(">I", len(data)) + kind + data + struct.pack(">I", zlib.crc32(kind + data))
    header = chunk(b"IHDR", struct.pack(">IIBBBBB", side, side, 1, 0, 0, 0, 0))
    return b"\x89PNG\r\n\x1a\n" + header + chunk(b"IDAT", zlib.compress(bytes(side // 8 + 1) * side)) + chunk(b"IEND", b"")


def test_two_writings_of_a_split_are_not_read_as_one(triplets_folder, tmp_path):
    folder = tmp_path / "set"
    shutil.copytree(triplets_folder, folder)
    (old,) = folder.glob("train*.parquet")
    shutil.copy(old, folder / "train-00000-of-00001.parquet")
    with pytest.raises(ValueError, match="of two writings"):
        Triplets(folder, "train", 16)
    rows = parquet.as_files(Triplets(triplets_folder, "train", 16).rows).to_list()
    assert write_triplets(rows[:5], folder, "train", shard=2) == 5
    assert [p.name for p in sorted(folder.glob("train*"))] == [f"train-0000{i}.parquet" for i in range(3)]
    assert len(Triplets(folder, "train", 16)) == 5


def test_a_writing_that_fails_leaves_the_old_set(triplets_folder, tmp_path):
    folder = tmp_path / "set"
    rows = parquet.as_files(Triplets(triplets_folder, "train", 16).rows).to_list()
    write_triplets(rows[:6], folder, "train", shard=2)
    with pytest.raises(ValueError, match="E1 is above E2"):
        write_triplets([*rows[6:9], rows[9] | {"E1": 0.9, "E2": 0.1}], folder, "train", shard=2)
    assert Triplets(folder, "train", 16).column("prompt_id").tolist() == [row["prompt_id"] for row in rows[:6]]
    assert sorted(p.name for p in folder.iterdir()) == [f"train-0000{i}.parquet" for i in range(3)]


def test_changed_pictures_are_not_cached_as_the_datas_own(triplets_folder, tmp_path):
    with pytest.raises(ValueError, match="not kept"):
        Triplets(triplets_folder, "train", 16).read_as(change=lambda content: content).cache(tmp_path)
