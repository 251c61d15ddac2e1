"""Prompts encoded once, before the text encoders make room."""

from functools import partial

import pytest
import torch

from icthp.tuning import draft, encoding, identity, lora, sampling, training

TEXTS = ["a red circle", "two blue stars", "a green heart"]


def test_without_its_text_encoders_a_pipeline_draws_the_same(load_pipe):
    """With guidance too; and its pictures are kept under a name of its own embeddings."""
    whole, ahead = load_pipe(), encoding.encode_ahead(load_pipe(), TEXTS)
    assert ahead.text_encoder is None and ahead.text_encoder_2 is None
    for guidance in (0.0, 3.0):
        drawn = [sampling.generate(pipe, TEXTS[:2], steps=2, guidance=guidance) for pipe in (whole, ahead)]
        assert torch.allclose(*drawn, atol=1e-5)
    other = encoding.encode_ahead(load_pipe(), TEXTS[:2])
    assert identity.identity_of_pipeline(ahead) == identity.identity_of_pipeline(encoding.encode_ahead(load_pipe(), TEXTS))
    assert identity.identity_of_pipeline(ahead) != identity.identity_of_pipeline(other)


def test_an_edit_needs_no_text_encoder(load_pipe):
    start = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    edited = [
        sampling.generate(pipe, TEXTS[:2], steps=2, start=start, strength=0.5)
        for pipe in (load_pipe(), encoding.encode_ahead(load_pipe(), TEXTS))
    ]
    assert torch.allclose(*edited, atol=1e-5)


def test_it_is_tuned_as_with_them(load_pipe):
    histories = []
    for prepare in (lambda pipe: pipe, lambda pipe: encoding.encode_ahead(pipe, TEXTS)):
        pipe = prepare(load_pipe())
        lora.add_lora(pipe, rank=2)
        update = partial(draft.draft_step, steps=2, guidance=2.0, negative=encoding.encode(pipe, [""]))
        bright = lambda pixels, prompts: pixels.mean((1, 2, 3))
        histories.append(training.tune(pipe, TEXTS, bright, update, batch=2, steps=3, lr=1e-2))
    assert [record["reward"] for record in histories[0]] == pytest.approx([record["reward"] for record in histories[1]], rel=1e-5)


def test_another_prompt_is_refused_by_its_name(load_pipe):
    pipe = encoding.encode_ahead(load_pipe(), TEXTS)
    with pytest.raises(ValueError, match="text encoders are gone, and 'a yellow ring' was not encoded before: name it in encode_ahead"):
        sampling.generate(pipe, ["a yellow ring"], steps=1)
