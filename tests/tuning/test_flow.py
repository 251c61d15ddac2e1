"""The sampler that a tuning step runs draws what the pipeline's own call draws."""

import pytest
import torch
from test_draft import STEPS, gradient, reward

from icthp.microworld import grammar
from icthp.tuning import draft, encoding, flow, sampling


def test_latents_and_decode_make_the_autoencoder(pipe):
    pipe.vae.register_to_config(scaling_factor=0.7, shift_factor=0.2)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    there_and_back = flow.decode(pipe, flow.latents(pipe, pixels))
    torch.testing.assert_close(there_and_back, (pipe.vae(pixels * 2 - 1).sample / 2 + 0.5).clamp(0, 1))


def test_training_pictures_are_the_pipelines(pipe, prompt, scenes):
    """The sampler of the training step and the pipeline's own draw the same picture from the same noise."""
    step, _ = gradient(pipe, prompt, k=1)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = pipe(grammar.captions(scenes[:3]), latents=noise, num_inference_steps=STEPS, guidance_scale=0, output_type="pt",
                 max_sequence_length=1).images  # fmt: skip
    assert torch.allclose(step.pixels, drawn, atol=1e-5)


def test_guidance_is_the_pipelines(pipe, scenes, prompt):
    step, staged = gradient(pipe, prompt, guidance=3.0, negative=encoding.encode(pipe, [""]))
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = pipe(grammar.captions(scenes[:3]), latents=noise, num_inference_steps=STEPS, guidance_scale=3.0, output_type="pt",
                 max_sequence_length=1).images  # fmt: skip
    assert torch.allclose(step.pixels, drawn, atol=1e-5)
    assert (staged - gradient(pipe, prompt)[1]).norm() > 1e-3 * staged.norm()
    with pytest.raises(ValueError, match="negative"):
        gradient(pipe, prompt, guidance=3.0)


def test_dynamic_shifting_is_refused(pipe, prompt):
    pipe.scheduler.register_to_config(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="dynamic shifting"):
        gradient(pipe, prompt, k=1)


def test_a_size_that_is_no_square(pipe, prompt, scenes):
    """Training step and sampler draw the same picture of it; one that the patches do not divide is refused."""
    texts = grammar.captions(scenes[:3])
    noise = lambda: [torch.Generator().manual_seed(7 + i) for i in range(3)]
    step = draft.draft_step(pipe, *prompt, reward, steps=STEPS, generator=noise(), size=(16, 32))
    assert step.pixels.shape == (3, 3, 16, 32)
    assert torch.allclose(step.pixels, sampling.generate(pipe, texts, steps=STEPS, seed=7, size=(16, 32)), atol=1e-5)
    with pytest.raises(ValueError, match="multiple of 8 pixels"):
        draft.draft_step(pipe, *prompt, reward, steps=STEPS, generator=noise(), size=20)
