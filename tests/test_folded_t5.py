"""Stable Diffusion 3 without its T5: the fold of its empty tokens draws what diffusers draws."""

import pytest
import torch
from diffusers import StableDiffusion3Pipeline

from icthp import pipelines
from icthp.tuning import encoding, sampling

PROMPTS = ["a red circle", "two blue squares"]


def draw(pipe):
    return sampling.generate(pipe, PROMPTS, steps=2)


def apart(a, b):
    return (a - b).abs().max().item()


def test_an_ordinary_call_draws_the_ordinary_picture(sd3_folder, load_pipe):
    """Of any number of empty tokens, anew and as an edit, with guidance; the fold is what max_sequence_length=1 asks for."""
    from diffusers import StableDiffusion3Img2ImgPipeline

    plain = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    noise = lambda: [torch.Generator().manual_seed(k) for k in range(2)]
    call = lambda pipe, **o: pipe(PROMPTS, num_inference_steps=4, generator=noise(), output_type="pt", **o).images
    want = call(plain, guidance_scale=3.0)
    assert apart(call(load_pipe(), guidance_scale=3.0), want) < 1e-4
    assert apart(call(load_pipe(), guidance_scale=3.0, max_sequence_length=pipelines.t5_length(load_pipe())), want) < 1e-4
    seven = call(plain, guidance_scale=0.0, max_sequence_length=7)
    assert apart(call(load_pipe(), guidance_scale=0.0, max_sequence_length=7), seven) < 1e-4 < apart(seven, call(plain, guidance_scale=0.0))
    edit = lambda pipe: call(StableDiffusion3Img2ImgPipeline(**pipe.components), image=want, strength=0.5, guidance_scale=0.0)
    assert apart(edit(load_pipe()), edit(plain)) < 1e-4


def test_the_folds_work_is_what_it_was(load_pipe):
    """One token behind the towers' instead of 256."""
    lengths = []
    pipe = load_pipe()
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: lengths.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    draw(pipe)
    assert set(lengths) == {pipe.tokenizer_max_length + 1} and encoding.encode(pipe, PROMPTS)[0].shape[1] == pipe.tokenizer_max_length + 1


@pytest.mark.parametrize("name", ["ip_hidden_states", "temb", "attention_mask"])
def test_what_the_folded_attention_cannot_do_is_refused(load_pipe, name):
    pipe = load_pipe()
    embeds, pooled = encoding.encode(pipe, PROMPTS)
    run = lambda **options: pipe.transformer(torch.ones(2, 4, 8, 8), embeds, pooled, torch.ones(2), joint_attention_kwargs=options)
    run(scale=1.0)
    with pytest.raises(ValueError, match=f"takes no {name}"):
        run(**{name: torch.ones(2, 1, 32)})
    attention = pipe.transformer.transformer_blocks[0].attn
    with pytest.raises(ValueError, match="takes no mask"):
        attention.processor(attention, torch.ones(1, 4, 32), torch.ones(1, 4, 32), mask=torch.ones(1))
