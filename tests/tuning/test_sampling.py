"""Pictures drawn in batches, in shards, by several processes, and by any diffusers pipeline."""

import hashlib
import io
import json
import subprocess
import sys

import pytest
import torch
from diffusers import DDIMScheduler, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from transformers import CLIPTextModel

from icthp import images, pipelines
from icthp.microworld import grammar, models, renderer
from icthp.scorers.clip import load_clip
from icthp.tuning import encoding, flow, sampling, training

DRAW = dict(steps=1, batch=2, seed=3)


def test_shards_are_drawn_once_and_again_for_other_weights(pipe, scenes, tmp_path, monkeypatch):
    texts, ids, drawn = grammar.captions(scenes[:7]), [0, 1, 2, 4, 5, 8, 9], []
    generate = sampling.generate
    monkeypatch.setattr(sampling, "generate", lambda p, some, **k: drawn.append(len(some)) or generate(p, some, **k))
    first = list(sampling.generate_shards(pipe, texts, ids, tmp_path, shard=3, **DRAW))
    assert drawn == [3, 3, 1] and len(first) == 7
    whole = images.encode(generate(pipe, texts, ids=ids, **DRAW))
    decode = lambda rows: images.stack([Image.open(io.BytesIO(r["bytes"])) for r in rows])
    assert (decode(first) - decode(whole)).abs().max() < 1.5 / 255  # other batches, other rounding
    next(tmp_path.glob("00001-*")).unlink()
    assert list(sampling.generate_shards(pipe, texts, ids, tmp_path, shard=3, **DRAW)) == first and drawn[3:] == [3]
    sampling.generate_shards(pipe, ["a cat", *texts[1:]], ids, tmp_path, shard=3, **DRAW)
    assert drawn[4:] == [3]
    with torch.no_grad():
        pipe.transformer.proj_out.bias[0] += 1
    assert list(sampling.generate_shards(pipe, texts, ids, tmp_path, shard=3, **DRAW)) != first and drawn[5:] == [3, 3, 1]


def test_an_edit_keeps_more_of_the_picture_the_weaker_it_is(pipe, scenes, tmp_path):
    texts, before = grammar.captions(scenes[:4]), renderer.render(scenes[:4], size=32)
    draw = lambda strength: sampling.generate(pipe, texts, steps=4, batch=3, start=before, strength=strength)
    with torch.no_grad():
        decoded = flow.decode(pipe, flow.latents(pipe, before))  # what the autoencoder makes of the picture
    distance = [(draw(strength) - decoded).square().mean() for strength in (0.25, 0.5, 1.0)]
    assert distance[0] < distance[1] < distance[2]
    start = lambda rows: before[rows]
    edit = lambda start: list(sampling.generate_shards(pipe, texts, range(4), tmp_path, shard=2, start=start, steps=4, strength=0.5))
    first = edit(start)
    assert len(list(tmp_path.glob("*"))) == 2 and edit(start) == first and len(list(tmp_path.glob("*"))) == 2
    edit(lambda rows: 1 - before[rows])
    assert len(list(tmp_path.glob("*"))) == 4  # other pictures, other files


def test_a_text_in_place_of_a_list_is_refused(pipe, tmp_path):
    update = lambda *_, **__: None
    for call in (lambda: sampling.generate(pipe, "a cat", steps=1), lambda: encoding.encode(pipe, "a cat"),
                 lambda: sampling.generate_shards(pipe, "a cat", [0], tmp_path, steps=1),
                 lambda: training.tune(pipe, "a cat", None, update, batch=1, steps=1, lr=1.0)):  # fmt: skip
        with pytest.raises(ValueError, match=r"a list of texts, not one text: \['a cat'\]"):
            call()
    with pytest.raises(ValueError, match="no prompt"):
        encoding.encode(pipe, [])


def test_no_prompts_are_no_pictures(pipe):
    side = pipe.transformer.config.sample_size * pipe.vae_scale_factor
    assert sampling.generate(pipe, [], steps=1).shape == (0, 3, side, side) == (0, *sampling.generate(pipe, ["a cat"], steps=1).shape[1:])
    assert sampling.generate(pipe, [], steps=1, size=(16, 32)).shape == (0, 3, 16, 32)
    assert sampling.generate(pipe, [], steps=1, start=torch.rand(0, 3, 8, 16)).shape == (0, 3, 8, 16)


def test_ids_and_start_pictures_are_one_a_prompt(pipe):
    for options in ({"ids": [1]}, {"start": torch.rand(1, 3, 16, 16)}):
        with pytest.raises(ValueError, match="2 prompts need as many ids and start pictures"):
            sampling.generate(pipe, ["a cat", "a dog"], steps=2, **options)


def test_any_diffusers_pipeline_draws(clip_folder, tokenizer, scenes, tmp_path):
    """Stable Diffusion 1's kind: a UNet and one text tower; by the same two functions, anew and as an edit."""
    clip = load_clip(f"local-dir:{clip_folder}").model
    torch.manual_seed(0)
    unet = UNet2DConditionModel(sample_size=8, in_channels=4, out_channels=4, block_out_channels=(8, 16), norm_num_groups=4,
                                layers_per_block=1, down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
                                up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"), cross_attention_dim=32,
                                attention_head_dim=4)  # fmt: skip
    tower = CLIPTextModel(pipelines.text_tower(clip, tokenizer).config)
    StableDiffusionPipeline(models.new_vae((8, 16, 16), latent_channels=4), tower, tokenizer, unet, DDIMScheduler(), None, None,
                            requires_safety_checker=False).save_pretrained(tmp_path / "sd")  # fmt: skip
    pipe, texts = pipelines.load_pipeline(tmp_path / "sd"), grammar.captions(scenes[:3])
    drawn = list(sampling.generate_shards(pipe, texts, [3, 1, 2], tmp_path / "out", shard=2, steps=2, batch=2))
    whole = sampling.generate(pipe, texts, ids=[3, 1, 2], steps=2)
    decode = lambda rows: images.stack([io.BytesIO(row["bytes"]) for row in rows])
    assert whole.shape[0] == 3 and (decode(drawn) - whole).abs().max() < 1.5 / 255
    edited = sampling.generate(pipe, texts, ids=[3, 1, 2], steps=4, start=whole, strength=0.25)
    assert edited.shape == whole.shape and not torch.equal(edited, whole)


def test_two_processes_draw_what_one_does(scenes, sd3_folder, tmp_path):
    texts = grammar.captions(scenes[:7])
    script = tmp_path / "draw.py"
    script.write_text(
        "import hashlib, json, os, sys, torch; from icthp import pipelines, tuning\n"
        "torch.set_num_threads(1); folder, out, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])\n"
        f"rows = tuning.generate_shards(pipelines.load_pipeline(folder), texts, list(range(7)), out, shard=2, **{DRAW})\n"
        "digest = hashlib.sha256(b''.join(r['bytes'] for r in rows)).hexdigest()\n"
        "open(f'{out}.{os.environ[\"RANK\"]}', 'w').write(digest)\n"
    )
    command = [sys.executable, "-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2", script]
    done = subprocess.run([*command, sd3_folder, tmp_path / "two", json.dumps(texts)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    assert len(list((tmp_path / "two").glob("*.parquet"))) == 4
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    one = sampling.generate_shards(pipelines.load_pipeline(str(sd3_folder)), texts, list(range(7)), tmp_path / "one", shard=2, **DRAW)
    torch.set_num_threads(threads)
    digest = hashlib.sha256(b"".join(row["bytes"] for row in one)).hexdigest()
    assert [(tmp_path / f"two.{rank}").read_text(encoding="utf-8") for rank in (0, 1)] == [digest] * 2


def test_a_pipeline_that_was_not_folded_draws_its_own_pictures(sd3_folder):
    """Stable Diffusion 3 without T5 as diffusers loads it: 256 empty tokens, not one."""
    from diffusers import StableDiffusion3Pipeline

    plain = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    drawn = [sampling.generate(pipe, ["a red circle"], steps=2) for pipe in (plain, pipelines.load_pipeline(str(sd3_folder)))]
    assert torch.allclose(*drawn, atol=1e-4)


def test_shards_of_another_scheduler_or_text_encoder_are_drawn_anew(sd3_folder, tmp_path):
    pipe, texts = pipelines.load_pipeline(str(sd3_folder)), ["a red circle"]
    draw = lambda: list(sampling.generate_shards(pipe, texts, [0], tmp_path, steps=2))
    first = draw()
    pipe.scheduler = type(pipe.scheduler).from_config(pipe.scheduler.config, shift=1.0)
    second = draw()
    pipe.text_encoder.text_projection.weight.data *= 2
    assert first != second != draw() and len(list(tmp_path.iterdir())) == 3
