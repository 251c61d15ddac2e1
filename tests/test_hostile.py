"""Inputs from elsewhere: each case once gave a silent wrong number, or ended a run."""

import io
import json
import os
import shutil
import subprocess
import sys
from functools import partial

import diffusers
import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel, CLIPTokenizer

from conftest import ROOT
from icthp import images, kernels, pipelines, preprocessing, tables
from icthp.data import audit, sources
from icthp.evaluation import gallery, human_votes
from icthp.scorers import loading, tokenizers
from icthp.tuning import draft, encoding, lora, sampling, training

PROMPTS = ["a red circle", "a blue square"]


# ---- pictures -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("mode", ["L", "RGB", "RGBA", "CMYK", "I;16"])
@pytest.mark.parametrize("orientation", [1, 3, 6, 8])
def test_a_tiff_is_upright_by_its_path_too(mode, orientation, tmp_path):
    exif, ramp = Image.Exif(), np.linspace(0, 255, 64 * 48).reshape(64, 48)
    exif[274] = orientation
    image = Image.fromarray((ramp * 257).astype(np.uint16)) if mode == "I;16" else Image.fromarray(ramp.astype(np.uint8)).convert(mode)
    image.save(tmp_path / "o.tif", exif=exif)
    by_path = images.read(tmp_path / "o.tif")
    assert torch.equal(by_path, images.read(io.BytesIO((tmp_path / "o.tif").read_bytes())))
    assert by_path.shape[1:] == ((48, 64) if orientation > 4 else (64, 48)) and abs(by_path.float().mean() - 127.5) < 1.5


def test_signed_numbers_and_dim_ones_are_refused(tmp_path):
    ramp = np.linspace(0, 4095, 64 * 64).reshape(64, 64)
    Image.fromarray(ramp.astype(np.int32)).save(tmp_path / "dim.tif")
    with pytest.raises(ValueError, match="dim.tif cannot be read: .*white may be 255, 4095 or 65535"):
        images.read(tmp_path / "dim.tif")
    Image.fromarray(ramp.astype(np.uint16)).save(tmp_path / "signed.tif", tiffinfo={339: 2})
    with pytest.raises(ValueError, match="signed.tif cannot be read: .*signed numbers"):
        images.read(tmp_path / "signed.tif")


def test_a_path_longer_than_a_message_shows(tmp_path):
    folder = tmp_path / ("d" * 100) / ("e" * 100)
    folder.mkdir(parents=True)
    Image.new("RGB", (8, 8)).save(folder / ("a prompt as a name, " * 6 + ".png"))
    table = gallery.read(str(folder), tmp_path / "o")
    assert gallery.score({"jpeg": loading.load("jpeg")}, table, tmp_path / "w").error.isna().all()


@pytest.mark.slow
def test_a_file_name_of_letters_that_the_locale_does_not_have(tmp_path):
    Image.new("RGB", (8, 8)).save(tmp_path / "ünï.png")
    code = "import sys; import icthp; from icthp.evaluation import gallery; w = sys.argv[1]\n"
    code += "print(gallery.score({'jpeg': icthp.load('jpeg')}, gallery.read(w, w + '/o'), w + '/w').error.isna().all())"
    locale = {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT / "lib")}
    done = subprocess.run([sys.executable, "-c", code, str(tmp_path)], env=os.environ | locale, capture_output=True, text=True)
    assert done.stdout.strip() == "True", done.stderr[-800:]


# ---- scorers --------------------------------------------------------------------------------------------------------


@pytest.fixture
def clip_of_transformers(tmp_path):
    """A tiny CLIPModel folder with a tokenizer of 49,408 tokens of its own."""
    shared = dict(hidden_size=64, intermediate_size=128, num_hidden_layers=2, num_attention_heads=2, projection_dim=64)
    text = shared | dict(vocab_size=49408, max_position_embeddings=77, eos_token_id=49407)
    vision = shared | dict(image_size=32, patch_size=8)
    torch.manual_seed(0)
    model = CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=64)).eval()
    model.save_pretrained(tmp_path / "clip")
    tokenizers.to_transformers(open_clip.SimpleTokenizer()).save_pretrained(tmp_path / "clip")
    return model, tmp_path / "clip"


def test_a_folders_own_tokenizer_reads_the_prompt(clip_of_transformers):
    """Curly quotes, entities and ligatures, which open_clip's own tokenizer would mend first."""
    model, folder = clip_of_transformers
    texts = ["a “red” cat’s hat", "R&amp;D department", "ﬁne ligature", "plain words", "word " * 200]
    tokens = CLIPTokenizer.from_pretrained(folder)(texts, padding="max_length", truncation=True, max_length=77, return_tensors="pt")
    with torch.no_grad():
        want = torch.nn.functional.normalize(model.get_text_features(**tokens).pooler_output, dim=-1)
        scorer = loading.load("pickscore", f"local-dir:{folder}")
        assert (scorer.text_features(texts) - want).abs().max() < 1e-5
    assert scorer.is_truncated(texts).tolist() == [False] * 4 + [True]


@pytest.mark.parametrize("fields", [{"default_to_square": True, "size": 32}, {"size": 32}, {"rescale_factor": 1 / 127.5}], ids=str)
def test_processors_fields_that_were_not_read(fields):
    config = {"crop_size": 32, "do_center_crop": "default_to_square" not in fields, "size": {"shortest_edge": 32}} | fields
    image = Image.fromarray(np.random.default_rng(0).integers(0, 256, (40, 70, 3), dtype=np.uint8))
    size = config["size"]
    if isinstance(size, int):
        size = {"height": size, "width": size} if config.get("default_to_square") else {"shortest_edge": size}
    processor = CLIPImageProcessor(**{k: v for k, v in config.items() if k != "default_to_square"} | {"size": size})
    expected = processor(image, return_tensors="pt").pixel_values
    got = kernels.preprocess(images.read(image)[None], preprocessing.from_transformers(config, 32, "x"))
    assert (got - expected).abs().max() < 0.05


@pytest.mark.parametrize("factor", [None, "1/255", 0, -1])
def test_a_rescale_factor_that_is_none_is_refused(factor):
    with pytest.raises(ValueError, match="x: `rescale_factor`"):
        preprocessing.from_transformers({"rescale_factor": factor}, 224, "x")


# ---- A2 -------------------------------------------------------------------------------------------------------------


@pytest.fixture
def album(tmp_path):
    Image.new("RGB", (16, 16), "red").save(tmp_path / "a.png")
    return tmp_path


def scored(album, scorers=None):
    return gallery.score(scorers or {"jpeg": loading.load("jpeg")}, gallery.read(str(album / "t.jsonl"), album / "o"), album / "w")


def lines(album, *rows):
    (album / "t.jsonl").write_text("".join(json.dumps({"image": "a.png", "prompt": "a"} | row) + "\n" for row in rows), encoding="utf-8")


def test_other_columns_of_any_kind_do_not_end_the_run(album):
    lines(album, {"seed": 1, "x": {}, "n": 1}, {"seed": "x", "x": [1], "n": 2**64})
    table = scored(album)
    table.to_parquet(album / "s.parquet")
    assert pd.read_parquet(album / "s.parquet").seed.tolist() == ["1", "x"] and table.jpeg.notna().all()


def test_a_column_of_theirs_refuses_no_picture(album):
    lines(album, {"refused": "no"}, {"refused": "yes"})
    assert scored(album).error.isna().all()


def test_a_head_with_spaces_or_capitals_is_read_or_named(album):
    (album / "t.csv").write_text("image, prompt\na.png,a\n", encoding="utf-8")
    assert gallery.read(str(album / "t.csv"), album).prompt.tolist() == ["a"]
    (album / "u.csv").write_text("image,Prompt\na.png,a\n", encoding="utf-8")
    with pytest.raises(ValueError, match="no column `prompt`; it has image, Prompt"):
        gallery.read(str(album / "u.csv"), album)


def test_another_architecture_of_equal_weights_is_scored_anew(album, clip_folder):
    shutil.copytree(clip_folder, album / "m")
    lines(album, {"prompt": "a red circle"})
    config = album / "m/open_clip_config.json"
    first = scored(album, {"clip": loading.load("clip", f"local-dir:{album / 'm'}")})["clip"][0]
    stated = json.loads(config.read_text(encoding="utf-8"))
    stated["model_cfg"]["text_cfg"]["no_causal_mask"] = True
    config.write_text(json.dumps(stated), encoding="utf-8")
    scorer = loading.load("clip", f"local-dir:{album / 'm'}")
    again = scored(album, {"clip": scorer})["clip"][0]
    assert again != first and again == pytest.approx(scorer.rank("a red circle", [album / "a.png"])[0][1], abs=1e-6)


@pytest.mark.parametrize("prompts", [["007", "1984"], ["1", "2.5"]])
def test_prompts_of_a_data_set_that_became_numbers_are_named(prompts, tmp_path):
    (tmp_path / "set/train").mkdir(parents=True)
    for i in range(2):
        Image.new("RGB", (8, 8)).save(tmp_path / f"set/train/{i}.png")
    table = pd.DataFrame({"file_name": ["0.png", "1.png"], "prompt": prompts})
    table.to_csv(tmp_path / "set/train/metadata.csv", index=False)
    with pytest.raises(ValueError, match="the prompt of row 0 is .* no text; store the column as texts, in a metadata.jsonl"):
        gallery.read(f"dataset:{tmp_path / 'set'}:train", tmp_path / "o")


def test_a_folder_called_snapshots_is_no_cache_of_the_hub(tmp_path):
    (tmp_path / "secret").write_bytes(b"mine")
    own = (tmp_path / "snapshots/set").resolve()
    own.mkdir(parents=True)
    assert tmp_path not in sources._roots(str(own), str(tmp_path / "work"))
    with pytest.raises(ValueError, match="outside the data set"):
        sources._contents({"bytes": None, "path": "../../secret"}, sources._roots(str(own), str(tmp_path / "work")))


def test_a_whole_picture_in_a_message_is_cut():
    with pytest.raises(ValueError) as caught:
        tables.declared("t", pd.DataFrame({"image": [{"bytes": b"x" * 10**6}]}), files=["image"])
    assert len(str(caught.value)) < 300


# ---- votes and audit ------------------------------------------------------------------------------------------------


def test_a_question_that_nobody_answered_is_no_wrong_answer():
    asked = {"tag": "two_object", "include": [{"class": "a", "count": 1}, {"class": "b", "count": 1, "color": "red"}]}
    assert human_votes._confirmed({"task-count-0": float("nan"), "task-count-1": 1.0, "task-color-1": None}, asked) == 1.0
    assert np.isnan(human_votes._confirmed({"task-count-0": None}, asked))


def test_votes_without_a_prompt_or_axis_are_named():
    table = pd.DataFrame({"prompt": ["a", None], "image": ["x", "y"], "axis": "q", "value": [1.0, 2], "score": [1.0, 2]})
    with pytest.raises(ValueError, match="1 votes have no prompt or axis, the first in row 1"):
        human_votes.agreement(table)


def test_an_agreement_that_never_varies_has_no_interval():
    table = pd.DataFrame({"prompt": np.repeat(list("abc"), 3), "image": list("123456789"), "axis": "q", "value": [1.0, 2, 3] * 3})
    found = human_votes.agreement(table.assign(score=table.value)).set_index("measure")
    assert found.loc["spearman", "mean"] == pytest.approx(1) and np.isnan(found.loc["spearman", "low"])
    assert found.loc["pairs", "low"] < 1


def test_too_few_pairs_for_an_audit_are_named():
    content = images.encode(torch.rand(6, 3, 8, 8))
    with pytest.raises(ValueError, match="at least 5 groups"):
        audit.predict_better([c["bytes"] for c in content[:3]], [c["bytes"] for c in content[3:]])
    thin = images.encode(torch.rand(1, 3, 1, 32))[0]["bytes"]
    with pytest.raises(ValueError, match="32 x 1 pixels"):
        audit.cues(thin)


# ---- drawing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pipe(sd3_folder):
    return pipelines.load_pipeline(str(sd3_folder))


def bright(pixels, rows):
    return pixels.mean((1, 2, 3))


def step(pipe, **options):
    noise = [torch.Generator().manual_seed(k) for k in range(2)]
    return draft.draft_step(pipe, *encoding.encode(pipe, PROMPTS), bright, steps=3, generator=noise, **options)


def test_tuning_draws_by_the_pipelines_own_levels(pipe, tmp_path):
    plain = sampling.generate(pipe, PROMPTS, steps=3)
    pipe.scheduler.set_shift(8.0)
    moved = sampling.generate(pipe, PROMPTS, steps=3)
    pipelines.save_sd3(pipe, tmp_path)
    assert (sampling.generate(pipelines.load_pipeline(str(tmp_path)), PROMPTS, steps=3) - moved).abs().max() < 1e-2  # kept as float16
    lora.add_lora(pipe, 2)
    assert (step(pipe).pixels - moved).abs().max() < 1e-4 < (moved - plain).abs().max()


@pytest.mark.parametrize(
    "name, options", [("FlowMatchHeunDiscreteScheduler", {}), ("FlowMatchEulerDiscreteScheduler", {"stochastic_sampling": True})]
)
def test_a_sampler_that_is_not_eulers_is_refused(pipe, name, options):
    pipe.scheduler = getattr(diffusers, name).from_config(pipe.scheduler.config, **options)
    lora.add_lora(pipe, 2)
    with pytest.raises(ValueError, match="not supported"):
        step(pipe)


def test_kept_pictures_know_shift_tiles_hooks_and_autocast(pipe, tmp_path):
    count = lambda: len(list(tmp_path.glob("*.parquet")))
    draw = lambda: list(sampling.generate_shards(pipe, PROMPTS, [0, 1], tmp_path, steps=1))
    draw()
    draw()
    assert count() == 1
    pipe.scheduler.set_shift(8.0)
    draw()
    assert count() == 2
    pipe.vae.tile_sample_min_size = 17
    draw()
    assert count() == 3
    hook = pipe.transformer.register_forward_hook(lambda module, given, made: made)
    draw()
    assert count() == 4
    hook.remove()
    draw()
    assert count() == 4
    with torch.autocast("cpu", torch.bfloat16):
        draw()
    assert count() == 5
    with pytest.raises(ValueError, match="as many ids"):
        sampling.generate_shards(pipe, PROMPTS, [0, 1, 2], tmp_path, steps=1)
    with pytest.raises(ValueError, match="floats in"):
        sampling.generate(pipe, PROMPTS, steps=2, start=torch.zeros(2, 3, 64, 64, dtype=torch.uint8), strength=0.5)


def test_a_pipeline_saved_over_shards_is_the_one_that_loads(pipe, tmp_path):
    pipe.save_pretrained(tmp_path, max_shard_size="100KB")
    assert list(tmp_path.glob("transformer/*.index.json"))
    with torch.no_grad():
        for p in pipe.transformer.parameters():
            p.mul_(0.9)
    want = sampling.generate(pipe, PROMPTS, steps=2)
    pipelines.save_sd3(pipe, tmp_path)
    assert (sampling.generate(pipelines.load_pipeline(str(tmp_path)), PROMPTS, steps=2) - want).abs().max() < 1e-2


def test_a_run_does_not_go_on_with_another_reward(pipe, tmp_path):
    class Limit(torch.nn.Module):
        def __init__(self, limit):
            super().__init__()
            self.limit = torch.nn.Parameter(torch.tensor(limit))

        def score(self, pixels, prompts):
            return pixels.mean((1, 2, 3)).clamp(max=self.limit.detach())

    update, options = partial(draft.draft_step, steps=2), {"batch": 2, "lr": 1e-3, "checkpoint": tmp_path / "c.pt", "save_every": 1}
    run = lambda limit, steps: training.tune(pipe, PROMPTS, Limit(limit).score, update, steps=steps, **options)
    lora.add_lora(pipe, 2)
    run(0.9, 2)
    with pytest.raises(ValueError, match="config.reward"):
        run(0.6, 2)
