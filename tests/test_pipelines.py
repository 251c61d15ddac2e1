"""Pipelines from folders: text towers between open_clip and diffusers, and the T5 encoder that is left out."""

from types import SimpleNamespace
from unittest import mock

import open_clip
import pytest
import torch
from transformers import CLIPTextConfig, CLIPTextModel

from icthp import pipelines
from icthp.microworld import models
from icthp.tuning import encoding, sampling


def test_text_tower_equals_open_clips(clip, tokenizer, prompts):
    tower = pipelines.text_tower(clip.model, tokenizer)
    ids = clip.tokenizer(prompts)
    with torch.no_grad():
        assert torch.allclose(tower(ids).text_embeds, clip.model.encode_text(ids), atol=1e-5)


def test_a_text_tower_takes_anothers_place(clip, tokenizer, prompts, sd3_folder):
    """The first encoder then says what the other CLIP says, the second what it said, and pictures change; one that fits comes back."""
    other = models.new_clip(models.clip_config(tokenizer, width=32, layers=2, text_layers=2, embed_dim=16))
    pipe, ids = pipelines.load_pipeline(str(sd3_folder)), clip.tokenizer(prompts)
    second = {k: v.clone() for k, v in pipe.text_encoder_2.state_dict().items()}
    before = sampling.generate(pipe, prompts, steps=2)
    with torch.no_grad():
        embeds = pipelines.swap_text_tower(pipe, other).text_encoder(ids).text_embeds
        assert torch.allclose(embeds, other.encode_text(ids), atol=1e-5)
    assert all(torch.equal(v, second[k]) for k, v in pipe.text_encoder_2.state_dict().items())
    assert (sampling.generate(pipe, prompts, steps=2) - before).abs().max() > 1e-3
    assert torch.allclose(
        sampling.generate(pipelines.swap_text_tower(pipe, clip.model), prompts, steps=2), before, atol=2e-3
    )  # stored as float16
    with pytest.raises(ValueError, match="another shape"):
        pipelines.swap_text_tower(pipe, models.new_clip(models.clip_config(tokenizer, width=64, layers=1, text_layers=2, embed_dim=16)))


def test_stable_diffusion_2_1_takes_the_text_tower_of_vit_h():
    """By its published text encoder's config: 23 of ViT-H-14's 24 layers and no projection, every shape alike."""
    config = CLIPTextConfig(vocab_size=49408, hidden_size=1024, intermediate_size=4096, projection_dim=512, num_hidden_layers=23,
                            num_attention_heads=16, max_position_embeddings=77, hidden_act="gelu")  # fmt: skip
    clip = open_clip.get_model_config("ViT-H-14")
    with torch.device("meta"):
        encoder, tower = CLIPTextModel(config), open_clip.CLIP(clip["embed_dim"], clip["vision_cfg"], clip["text_cfg"])
    given, last = [], [k for k in pipelines._text_state(tower, "") if "layers.23." in k]
    with mock.patch.object(pipelines, "fill", lambda model, state, _: given.append(state)):
        pipelines.swap_text_tower(SimpleNamespace(text_encoder=encoder), tower)
    own = encoder.state_dict()
    assert {k: v.shape for k, v in given[0].items()} == {k: v.shape for k, v in own.items()}
    assert len(last) == 16 and not any(k.endswith(last[0]) for k in own)


def test_folded_t5_draws_the_same_picture(sd3_folder, prompts):
    """256 equal zero tokens against one with log(256) on its logit, through the whole pipeline."""
    from diffusers import StableDiffusion3Pipeline

    plain = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    options = dict(num_inference_steps=4, guidance_scale=0, output_type="pt")
    one, two = (torch.Generator().manual_seed(0) for _ in range(2))
    expected = plain(prompts, generator=one, **options).images
    folded = pipelines.load_pipeline(str(sd3_folder))(prompts, generator=two, max_sequence_length=1, **options).images
    assert torch.allclose(expected, folded, atol=1e-4)


def test_a_new_transformer_tells_patches_and_words_apart(sd3_folder, prompts):
    pipe = pipelines.load_pipeline(str(sd3_folder))
    side = pipe.transformer.config.pos_embed_max_size
    code = pipe.transformer.pos_embed.pos_embed[0]
    distance = torch.cdist(code, code) + torch.eye(side**2) * 9
    assert distance.min() > 0.5 * code.norm(dim=1).mean()  # the class's own: 0.25 here, 0.1 on a side of 8
    assert torch.linalg.matrix_rank(code.float() - code.mean(0), rtol=1e-2) >= 2 * (side - 1)
    embeds, _ = encoding.encode(pipe, prompts)
    second = embeds[:, 1:-1, pipe.text_encoder.config.hidden_size :]
    assert second.std() > 0.5  # at 0.02 the words would be invisible beside the first tower's


def test_a_folder_that_is_no_pipeline(tmp_path):
    with pytest.raises(FileNotFoundError, match="model_index.json"):
        pipelines.load_pipeline(str(tmp_path))


def test_generate_does_not_depend_on_the_batch(sd3_folder, prompts):
    pipe = pipelines.load_pipeline(str(sd3_folder))
    assert torch.allclose(sampling.generate(pipe, prompts, steps=2, batch=2), sampling.generate(pipe, prompts, steps=2, batch=5), atol=1e-4)


def test_a_text_tower_keeps_its_activation(clip, tokenizer, prompts, sd3_folder):
    quick = models.new_clip(models.clip_config(tokenizer, width=32, layers=1, text_layers=2, embed_dim=16) | {"quick_gelu": True})
    tower, ids = pipelines.text_tower(quick, tokenizer), clip.tokenizer(prompts)
    assert tower.config.hidden_act == "quick_gelu" and torch.allclose(tower(ids).text_embeds, quick.encode_text(ids), atol=1e-5)
    with pytest.raises(ValueError, match="activation quick_gelu, the pipeline's gelu"):
        pipelines.swap_text_tower(pipelines.load_pipeline(str(sd3_folder)), quick)


@pytest.mark.parametrize("encoder, part", [("text_encoder", slice(0, 32)), ("text_encoder_2", slice(32, 64))])
def test_a_silenced_encoder_says_zeros_and_the_other_what_it_said(sd3_folder, prompts, encoder, part):
    pipe = pipelines.load_pipeline(str(sd3_folder))
    embeds, pooled = encoding.encode(pipe, prompts)
    silent, silent_pooled = encoding.encode(pipelines.silence(pipe, encoder), prompts)
    is_silent = torch.zeros(64, dtype=torch.bool)
    is_silent[part] = True
    assert not silent[..., is_silent].any() and torch.equal(silent[..., ~is_silent], embeds[..., ~is_silent])
    assert embeds[..., is_silent].any() and (silent_pooled == 0).any() and pooled.all()
    with pytest.raises(ValueError, match="no text_encoder_3"):
        pipelines.silence(pipe, "text_encoder_3")


def test_another_transformer_in_a_pipeline(sd3_folder, prompts, tmp_path):
    pipe = pipelines.load_pipeline(str(sd3_folder))
    small = models.new_transformer((pipe.text_encoder, pipe.text_encoder_2), pipe.vae, width=32, layers=1, latent_size=8)
    torch.nn.init.normal_(small.proj_out.weight, std=0.1)
    small.save_pretrained(tmp_path / "transformer")
    other = pipelines.load_pipeline(str(sd3_folder), transformer=str(tmp_path / "transformer"))
    assert len(other.transformer.transformer_blocks) == 1 and pipelines.t5_length(other) == 1
    assert torch.equal(other.transformer.proj_out.weight, small.proj_out.weight)
    assert (sampling.generate(other, prompts, steps=2) - sampling.generate(pipe, prompts, steps=2)).abs().max() > 1e-3
    with pytest.raises(FileNotFoundError, match="not the folder of a transformer"):
        pipelines.load_pipeline(str(sd3_folder), transformer=str(tmp_path))
