"""What is the same data, prompt and model: by contents and code, never by names and times. And tables whoever wrote them."""

import os
import shutil
import subprocess
import sys
import tracemalloc

import datasets
import numpy as np
import pandas as pd
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

from conftest import ROOT
from icthp import train
from icthp.data import parquet, prompts
from icthp.data.pairs import PAIRS, read_pairs
from icthp.data.triplets import TRIPLETS, Triplets, write_dataset_card, write_triplets
from icthp.evaluation import human_votes
from icthp.scorers import clip, loading
from test_train import SHORT, killed_before_the_end

FILE = "train-00000.parquet"


@pytest.fixture
def copied(triplets_folder, tmp_path):
    """The training triplets in a folder of this test's own."""
    shutil.copytree(triplets_folder, tmp_path / "set")
    return tmp_path / "set"


def open_(folder, split="train", size=48) -> Triplets:
    return Triplets(folder, split, size)


def rewrite(folder, change) -> None:
    """Each row of the training file through `change`."""
    table = pq.read_table(folder / FILE)
    pq.write_table(pa.Table.from_pylist([change(i, row) for i, row in enumerate(table.to_pylist())], table.schema), folder / FILE)


# ---- data ------------------------------------------------------------------------------------------------------------


def test_a_copied_or_touched_file_is_the_same_data(copied, triplets_folder):
    first = open_(triplets_folder).fingerprint
    os.utime(copied / FILE, (1, 1))
    assert open_(copied).fingerprint == first
    rewrite(copied, lambda i, row: row | {"E1": row["E1"] / 2} if i == 23 else row)
    assert open_(copied).fingerprint != first != open_(copied, "test").fingerprint


@pytest.mark.parametrize("stage", ["ict", "hp"])
def test_a_killed_training_goes_on_with_the_same_data_anywhere_and_with_no_other(copied, clip_folder, tmp_path, monkeypatch, stage):
    """Also where the first batch, and with it the first loss, is the same."""
    options = SHORT | {"out": tmp_path / "out", "clip": f"local-dir:{clip_folder}"}
    killed_before_the_end(monkeypatch, train.STAGES[stage], triplets=copied, **options)
    shutil.move(copied, tmp_path / "elsewhere")
    os.utime(tmp_path / "elsewhere" / FILE, (1, 1))
    shutil.copytree(tmp_path / "out", tmp_path / "again")
    assert len(train.STAGES[stage](triplets=tmp_path / "elsewhere", **options)) == 2
    rewrite(tmp_path / "elsewhere", lambda i, row: row | {"source_1": "another"} if i == 23 else row)
    with pytest.raises(ValueError, match=r"config.data: was '[0-9a-f]+', is '[0-9a-f]+'; delete it to start again"):
        train.STAGES[stage](triplets=tmp_path / "elsewhere", **options | {"out": tmp_path / "again"})


def test_a_base_of_another_name_is_the_same_and_one_of_other_weights_is_not(triplets_folder, clip_folder, tmp_path, monkeypatch):
    """The other base differs in a word that no prompt has, so that every loss is the same."""
    options = SHORT | {"out": tmp_path / "out", "triplets": triplets_folder}
    killed_before_the_end(monkeypatch, train.ict, clip=f"local-dir:{clip_folder}", **options)
    base = loading.load("clip", f"local-dir:{clip_folder}")
    unused = sorted(set(range(base.model.vocab_size)) - set(base.tokenizer(open_(triplets_folder).texts["easy"]).flatten().tolist()))
    base.model.token_embedding.weight.data[unused[0]] += 1
    clip.save_clip(base.model, base.tokenizer, base.architecture, tmp_path / "other", torch.float32)
    with pytest.raises(ValueError, match="model: was '[0-9a-f]+', is '[0-9a-f]+'; delete"):
        train.ict(clip=f"local-dir:{tmp_path / 'other'}", **options)
    shutil.copytree(clip_folder, tmp_path / "renamed")
    assert len(train.ict(clip=f"local-dir:{tmp_path / 'renamed'}", **options)) == 2


# ---- cached pictures -------------------------------------------------------------------------------------------------


def cached_files(folder) -> list[str]:
    return sorted(p.name for p in folder.glob("*.npy"))


def test_cached_pictures_are_those_of_the_data_and_no_older_ones_stay(copied, tmp_path):
    store = tmp_path / "pictures"
    before = open_(copied).cache(store)
    assert open_(copied).cache(store).pixels([0]).equal(before.pixels([0])) and len(cached_files(store)) == 1
    open_(copied, "test").cache(store)
    open_(copied, size=32).cache(store)
    (store / "notes.npy").write_text("somebody's own")
    first = cached_files(store)
    assert len(first) == 4
    rewrite(copied, lambda i, row: row | {"image_1": row["image_3"]})
    after = open_(copied).cache(store)
    assert (after.pixels(range(4)) - open_(copied).pixels(range(4))).abs().max() <= 0.5 / 255 + 1e-6
    assert not after.pixels(range(4)).equal(before.pixels(range(4)))  # a run that has the old file open keeps it
    last = cached_files(store)
    assert len(last) == 3 and len(set(last) & set(first)) == 2  # the other split's and a file that is none of ours


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[:500], lambda b: b[: len(b) // 2], lambda b: b"no array"])
def test_cached_pictures_that_are_cut_are_made_anew(triplets_folder, tmp_path, damage):
    before = open_(triplets_folder).cache(tmp_path).pixels(range(24))
    (file,) = tmp_path.iterdir()
    file.write_bytes(damage(file.read_bytes()))
    assert open_(triplets_folder).cache(tmp_path).pixels(range(24)).equal(before) and list(tmp_path.iterdir()) == [file]


EDITED = """
import sys
from icthp.data import Triplets
folder, store = sys.argv[1:]
decoded, cached = Triplets(folder, "test", 48), Triplets(folder, "test", 48).cache(store)
print((decoded.pixels(range(6)) - cached.pixels(range(6))).abs().max().item())
"""


def test_cached_pictures_follow_the_code_that_resizes_them(triplets_folder, tmp_path):
    """The library is edited between two runs: bilinear in place of bicubic."""
    shutil.copytree(ROOT / "lib/icthp", tmp_path / "lib/icthp", ignore=shutil.ignore_patterns("__pycache__"))
    environment = os.environ | {"PYTHONPATH": str(tmp_path / "lib")}
    command = [sys.executable, "-c", EDITED, triplets_folder, tmp_path / "store"]
    differences = []
    for old, new in (("", ""), ('filter: str = "bicubic"', 'filter: str = "bilinear"')):
        file = tmp_path / "lib/icthp/preprocessing.py"
        text = file.read_text(encoding="utf-8")
        assert old in text
        file.write_text(text.replace(old, new) if old else text, encoding="utf-8")
        done = subprocess.run(command, capture_output=True, text=True, env=environment, timeout=200)
        assert done.returncode == 0, done.stderr[-2000:]
        differences.append(float(done.stdout))
    assert max(differences) <= 0.5 / 255 + 1e-6 and len(cached_files(tmp_path / "store")) == 1


def test_scalars_that_are_cut_are_computed_anew(triplets_folder, clip_folder, tmp_path):
    source, set_ = f"local-dir:{clip_folder}", open_(triplets_folder, size=64)
    before = train._ict_scalars(source, set_, tmp_path / "out", "cpu")
    (file,) = (tmp_path / "out/work").glob("ict-*.pt")
    file.write_bytes(file.read_bytes()[:100])
    assert torch.equal(train._ict_scalars(source, set_, tmp_path / "out", "cpu"), before)


# ---- prompts ---------------------------------------------------------------------------------------------------------

SPELLINGS = ["a red  circle", "A Red Circle", " a red circle\n", "a red&nbsp;circle", "a red\tcircle", "a red circle &amp;amp; a cat"]


def test_prompts_are_one_where_the_tokenizer_reads_one(clip_folder):
    """Of both tokenizers: the folder's own, and open_clip's."""
    from open_clip import SimpleTokenizer

    texts = [*SPELLINGS, "a red circle & a cat", "a red circle!", "a redcircle"]
    same = [[prompts.same_prompt(a) == prompts.same_prompt(b) for a in texts] for b in texts]
    for tokenizer in (loading.load("clip", f"local-dir:{clip_folder}").tokenizer, SimpleTokenizer()):
        tokens = tokenizer(texts)
        assert same == (tokens[:, None] == tokens).all(-1).tolist()
    assert sum(map(sum, same)) == 5 * 5 + 2 * 2 + 1 + 1


def test_ids_follow_the_first_appearance(clip_folder):
    assert prompts.prompt_groups(["b", "a", "B ", "c", " A"]) == [0, 1, 0, 2, 1]
    long = "a red circle left of a blue square " * 30
    texts = [long, long + "and a star", "a star", "A star", "a red star"]  # the tower cuts the first two where they are still the same
    assert prompts.prompt_groups(texts) == [0, 1, 2, 2, 3]
    assert prompts.prompt_groups(texts, loading.load("clip", f"local-dir:{clip_folder}").tokenizer) == [0, 0, 1, 1, 2]


def test_spellings_of_a_prompt_are_one_group_on_one_side_of_the_split(copied):
    spell = [lambda p: p, str.capitalize, lambda p: p + " ", str.upper]
    table = pq.read_table(copied / FILE).to_pylist()
    rewrite(copied, lambda i, row: row | {"easy_prompt": spell[i % 4](f"{i // 4} {table[i // 4]['easy_prompt']}")})
    assert open_(copied).groups.tolist() == [i // 4 for i in range(24)]


def test_votes_of_one_prompt_are_one_prompts_votes():
    table = pd.DataFrame({"prompt": ["a cat", "A cat", "a  cat", "a dog"], "image": list("abcd"), "axis": "quality",
                          "score": [1.0, 2, 3, 4], "value": [1.0, 3, 2, 4]})  # fmt: skip
    found = human_votes.agreement(table, resamples=5).set_index("measure")
    assert found.loc["pairs", ["mean", "n", "groups"]].tolist() == pytest.approx([2 / 3, 3, 1])


# ---- tables whoever wrote them ---------------------------------------------------------------------------------------


def large(kind):
    if pa.types.is_struct(kind):
        return pa.struct([pa.field(f.name, large(f.type)) for f in kind])
    return {pa.string(): pa.large_string(), pa.binary(): pa.large_binary()}.get(kind, kind)


def bare(table):
    return table.replace_schema_metadata(None)


def replace(table, name, column):
    return table.set_column(table.schema.get_field_index(name), name, column)


def contents_alone(table, kind=None):
    for name in ("image_1", "image_2", "image_3"):
        table = replace(table, name, pa.array([picture["bytes"] for picture in table[name].to_pylist()], kind or pa.binary()))
    return bare(table)


def as_pandas(table):
    frame = table.to_pandas()
    return pa.Table.from_pandas(frame.sample(frac=1, random_state=0).sort_values("prompt_id"))  # an index column beside


def as_decimals(table):
    column = table["E2"].cast(pa.float64()).cast(pa.decimal128(30, 20), safe=False)
    return bare(replace(table, "E2", column))


WRITERS = {
    "pyarrow, DuckDB": bare,
    "pandas": as_pandas,
    "polars": lambda t: pa.table({name: bare(t)[name].cast(large(t.schema.field(name).type)) for name in t.column_names}),
    "views": lambda t: replace(t, "easy_prompt", t["easy_prompt"].cast(pa.string_view())),
    "categories": lambda t: bare(replace(t, "easy_prompt", t["easy_prompt"].dictionary_encode())),
    "contents": contents_alone,
    "large contents": lambda t: contents_alone(t, pa.large_binary()),
    "decimals": as_decimals,
    "other order, more columns": lambda t: bare(t.select(t.column_names[::-1]).append_column("extra", pa.array(range(len(t))))),
}


@pytest.mark.parametrize("writer", WRITERS)
def test_triplets_and_pairs_are_the_same_whoever_wrote_them(triplets_folder, tmp_path, writer):
    source = datasets.Dataset.from_parquet(str(triplets_folder / FILE), cache_dir=str(tmp_path / "cache"))
    table = parquet.as_files(source).data.table.combine_chunks()
    (tmp_path / "set").mkdir()
    pq.write_table(WRITERS[writer](table), tmp_path / "set" / FILE)
    expected, found = open_(triplets_folder), open_(tmp_path / "set")
    assert found.texts == expected.texts and all(torch.allclose(a, b) for a, b in zip(found.labels(), expected.labels()))
    assert found.pixels(range(24)).equal(expected.pixels(range(24))) and found.rows.features == TRIPLETS
    pairs = read_pairs(tmp_path / "set", "train", 5)
    assert pairs.features == PAIRS and pairs["easy_prompt"][:] == expected.texts["easy"][:5]
    assert [row["image_2"].size for row in pairs] == [row["image_2"].size for row in expected.rows.select(range(5))]


@pytest.mark.parametrize("layout", [
    ["train.parquet"], ["train-00000-of-00002.parquet", "train-00001-of-00002.parquet"], ["data/train-00000-of-00001.parquet"],
    ["data/train-00000-of-00002-0a1b.parquet", "data/train-00001-of-00002-2c3d.parquet"], ["train/0000.parquet", "train/0001.parquet"],
    ["data/train/0.parquet"], ["default/train/0000.parquet"]])  # fmt: skip
def test_triplets_lie_as_the_hub_lays_them(triplets_folder, tmp_path, layout):
    table, n = pq.read_table(triplets_folder / FILE), len(layout)
    for i, name in enumerate(layout):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(table.slice(i * 24 // n, 24 // n), tmp_path / name)
    (tmp_path / layout[0]).with_name(".train-00009.partial.parquet").write_bytes(b"half")
    pq.write_table(table.slice(0, 3), tmp_path / "training.parquet")  # another split's
    assert open_(tmp_path).texts == open_(triplets_folder).texts and len(read_pairs(tmp_path, "train")) == 24
    with pytest.raises(FileNotFoundError, match="test.parquet is missing"):
        open_(tmp_path, "test")


def test_a_shard_that_lacks_is_missed(triplets_folder, tmp_path):
    shutil.copy(triplets_folder / FILE, tmp_path / "train-00000-of-00003.parquet")
    with pytest.raises(FileNotFoundError, match="has 1 of the 3 files of train: `dvc repro pick_high`"):
        open_(tmp_path)


@pytest.mark.parametrize("column, values, message", [
    ("image_2", ["a.png"] * 24, "column image_2 holds string in rows 0 to 23 that cannot become pictures: a picture is the contents"),
    ("E1", ["high"] * 24, "column E1 holds string in rows 0 to 23 that cannot become float: .*high"),
    ("seed", [0.5] * 24, "column seed holds double .* cannot become int64"),
    ("refined_prompt", ["x"] * 20 + [None] + ["x"] * 3, "refined_prompt of row 20 is empty: fill it in or drop the row"),
    ("R1", [0.0] * 7 + [None] + [0.0] * 16, "R1 of row 7 of train is None: fill it in"),
    ("R1", [0.0] * 7 + [float("nan")] + [0.0] * 16, "R1 of row 7 of train is nan: fill it in"),
    ("image_3", [b""] * 3 + [None] + [b""] * 20, "image_3 of row 3 is empty"),
    ("image_3", [b"no picture"] * 24, "image_3 of row 2 of train cannot be read")])  # fmt: skip
def test_what_cannot_be_read_is_named_by_file_column_and_row(copied, column, values, message):
    table = pq.read_table(copied / FILE)
    pq.write_table(replace(table, column, pa.array(values)), copied / FILE)
    with pytest.raises(ValueError, match=rf"{FILE}: {message}"):
        triplets = open_(copied)
        triplets.labels()
        triplets.pixels([2])


@pytest.mark.parametrize("damage", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b[:4] + bytes(4000) + b[4004:]])
def test_a_damaged_file_is_named(copied, damage):
    (copied / FILE).write_bytes(damage((copied / FILE).read_bytes()))
    with pytest.raises(ValueError, match=f"{FILE} (cannot be read as parquet|is damaged after row 0), fetch or write it again"):
        open_(copied).pixels([0])


def test_a_path_without_contents_names_no_file_of_this_machine(copied, tmp_path):
    """Such a picture is missing, and is not the file that the path names."""
    Image.new("RGB", (9, 9), "red").save(tmp_path / "private.png")
    rewrite(copied, lambda i, row: row | {"image_1": {"bytes": None, "path": str(tmp_path / "private.png")}} if i == 1 else row)
    pairs = read_pairs(copied, "train")
    assert pairs[1]["image_1"] is None and pairs[0]["image_1"].format == "JPEG"
    assert [i for i, error in enumerate(parquet.unreadable(pairs)) if error] == [1]
    with pytest.raises(ValueError, match="image_1 of row 1 is empty"):
        open_(copied).pixels([1])


@pytest.mark.parametrize("form", [bare, contents_alone])
def test_a_damaged_picture_is_found_in_a_plain_table(copied, form):
    rewrite(copied, lambda i, row: row | {"image_2": {"bytes": row["image_2"]["bytes"][:200], "path": None}} if i == 2 else row)
    table = datasets.Dataset(form(pq.read_table(copied / FILE)))
    assert [i for i, error in enumerate(parquet.unreadable(table)) if error] == [2]


GUEST = """
import sys
from icthp import data
print(len(data.read_pairs(sys.argv[1], "train")), data.Triplets(sys.argv[1], "train", 64).pixels([0]).shape)
"""


def test_nothing_is_written_into_the_home_or_left_elsewhere(triplets_folder, tmp_path):
    """A home that is a file, as read-only as one can be made for root, and a temporary folder that is as empty as before."""
    (tmp_path / "home").write_text("")
    (tmp_path / "tmp").mkdir()
    clean = {k: v for k, v in os.environ.items() if not k.startswith(("HF_", "XDG_"))}
    here = clean | {"HOME": str(tmp_path / "home"), "TMPDIR": str(tmp_path / "tmp"), "PYTHONPATH": str(ROOT / "lib"), "HF_HUB_OFFLINE": "1"}
    command = [sys.executable, "-c", GUEST, triplets_folder]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=here, timeout=200)
    assert done.stdout.startswith("24 torch.Size([3, 1"), done.stderr[-2000:]
    assert not list((tmp_path / "tmp").iterdir()) and sorted(p.name for p in tmp_path.iterdir()) == ["home", "tmp"]


def test_a_table_is_read_a_batch_at_a_time(tmp_path):
    """One row group of 40 MB in the file: a small part of it is allocated at once, by Python or by Arrow, and nothing stays."""
    features = datasets.Features({"prompt_id": datasets.Value("int64"), "image_1": datasets.Image()})
    noise = np.random.default_rng(0).bytes(10_000)
    rows = [{"prompt_id": i, "image_1": {"bytes": noise + bytes([i % 256]), "path": None}} for i in range(4096)]
    pq.write_table(pa.Table.from_pylist(rows, features.arrow_schema), tmp_path / "t.parquet", use_dictionary=False)
    del rows
    pool = pa.default_memory_pool()
    counted, before = pa.proxy_memory_pool(pool), pa.total_allocated_bytes()
    pa.set_memory_pool(counted)
    tracemalloc.start()
    table = parquet.read([str(tmp_path / "t.parquet")], features)
    python = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    pa.set_memory_pool(pool)
    assert counted.max_memory() + python < 25e6 and pa.total_allocated_bytes() - before < 2e6
    assert len(table) == 4096 and parquet.as_files(table)[4095]["image_1"]["bytes"] == noise + bytes([4095 % 256])


# ---- model folders ---------------------------------------------------------------------------------------------------

FULL = """
import resource, signal, sys
from icthp import train, trainer
out, triplets, clip = sys.argv[1:]
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
run = trainer.train

def then_full(*args, **options):
    history = run(*args, **options)
    resource.setrlimit(resource.RLIMIT_FSIZE, (30_000, 30_000))
    return history

trainer.train = then_full
try:
    train.ict(out=out, triplets=triplets, clip="local-dir:" + clip, steps=2, batch=4, lr=1e-2, validation=0.2, validate_every=1)
except OSError as error:
    print("ERROR", error)
"""


def contents(folder) -> dict:
    return {p.name: p.read_bytes() for p in folder.iterdir() if p.is_file()}


def test_a_disk_that_is_full_half_way_leaves_the_model_before(triplets_folder, clip_folder, tmp_path):
    """The file system refuses the new weights after 30 kB; with room again the run goes on from its checkpoint, and the old card goes."""
    out, common = tmp_path / "ict", {"triplets": triplets_folder, "clip": f"local-dir:{clip_folder}"} | SHORT
    train.ict(out=out, **common)
    (out / "README.md").write_text("the first model's card", encoding="utf-8")
    before = contents(out)
    command = [sys.executable, "-c", FULL, out, triplets_folder, clip_folder]
    done = subprocess.run(command, capture_output=True, text=True, timeout=200)
    assert f"ERROR {out} could not be written; what was there before is untouched" in done.stdout, done.stderr[-2000:]
    assert contents(out) == before and sorted(p.name for p in tmp_path.iterdir()) == ["ict", "pictures"]
    train.ict(out=out, **common | {"lr": 1e-2})
    after = contents(out)
    assert after.keys() == before.keys() and b"first model" not in after["README.md"] and not (out / "work").exists()
    assert any(not torch.equal(v, load_file(out / "open_clip_model.safetensors")[k]) for k, v in load_file_of(before, tmp_path).items())


def load_file_of(files: dict, folder) -> dict:
    (folder / "old.safetensors").write_bytes(files["open_clip_model.safetensors"])
    return load_file(folder / "old.safetensors")


def test_training_gives_the_callers_random_numbers_back(triplets_folder, clip_folder, tmp_path):
    state = torch.get_rng_state()
    for stage in train.STAGES.values():
        stage(out=tmp_path / "out", triplets=triplets_folder, clip=f"local-dir:{clip_folder}", **SHORT)
    assert torch.equal(torch.get_rng_state(), state)


def test_errors_of_writing_name_the_file(tmp_path):
    rows = [{"prompt_id": i, "text": "x" if i < 3 else 7} for i in range(4)]
    features = datasets.Features({"prompt_id": datasets.Value("int64"), "text": datasets.Value("string")})
    with pytest.raises(ValueError, match=r"t-00001.parquet, rows 2 to 3: a value is not of its column's type"):
        write_triplets(rows, tmp_path, "t", features, shard=2)
    facts = {"scale": "micro", "generator": "<b>bold</b>", "voter": "some\nbody", "theta": 1.2, "formats": "PNG & JPEG"}
    write_dataset_card(tmp_path, {"t": 4}, **facts)
    card = (tmp_path / "README.md").read_text(encoding="utf-8")
    assert "&lt;b&gt;bold" in card and "<b>" not in card and "(some body)" in card and "theta = 1.2" in card
    with pytest.raises(ValueError, match="README.md needs the fact 'voter'"):
        write_dataset_card(tmp_path, {"t": 4}, **{k: v for k, v in facts.items() if k != "voter"})
