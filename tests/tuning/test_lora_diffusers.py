"""LoRAs in plain diffusers: merged, scaled and mixed, the pictures are those of the tuned pipeline."""

import torch
from test_draft import STEPS

from icthp import pipelines
from icthp.microworld import grammar
from icthp.tuning import sampling
from icthp.tuning.lora import add_lora, merged, save_lora, without_lora


def test_merged_draws_what_the_lora_draws(pipe, prompt):
    run = lambda: pipe.transformer(torch.ones(3, 4, 8, 8), *prompt, torch.full((3,), 500.0), return_dict=False)[0].detach()
    plain = run()
    with merged(pipe.transformer):
        within, moved = run(), pipe.transformer.transformer_blocks[0].attn.to_q.merged
    with without_lora(pipe.transformer):
        base = run()
    assert moved and torch.allclose(within, plain, atol=1e-5) and torch.equal(run(), plain) and not torch.allclose(base, plain, atol=1e-3)


def test_lora_targets_and_alpha(sd3_folder):
    pipe = pipelines.load_pipeline(str(sd3_folder))
    add_lora(pipe, rank=2, alpha=8, targets=["to_q"])
    layers = [m for _, m in pipe.transformer.named_modules() if hasattr(m, "lora_A")]
    assert len(layers) == len(pipe.transformer.transformer_blocks) and layers[0].scaling["default"] == 4


def test_a_saved_lora_draws_the_same_pictures_in_plain_diffusers(pipe, sd3_folder, scenes, tmp_path):
    prompts = grammar.captions(scenes[:2])
    base = sampling.generate(pipelines.load_pipeline(str(sd3_folder)), prompts, steps=STEPS)
    tuned = sampling.generate(pipe, prompts, steps=STEPS)
    save_lora(pipe, tmp_path)
    again = pipelines.load_pipeline(str(sd3_folder))
    again.load_lora_weights(str(tmp_path))
    assert (tuned - base).abs().max() > 0.01
    assert torch.allclose(sampling.generate(again, prompts, steps=STEPS), tuned, atol=1e-5)


def test_scale_and_mixture_of_loras_by_plain_diffusers(pipe, sd3_folder, scenes, tmp_path):
    """Half of a saved LoRA lies between none and all of it; two that are the same, half each, are one."""
    save_lora(pipe, tmp_path)
    prompts, again = grammar.captions(scenes[:2]), pipelines.load_pipeline(str(sd3_folder))
    draw = lambda: sampling.generate(again, prompts, steps=STEPS)
    base = draw()
    for name in ("a", "b"):
        again.load_lora_weights(str(tmp_path), adapter_name=name)
    pictures_at = {}
    for weights in ((0.0, 0.0), (0.5, 0.0), (1.0, 0.0), (0.5, 0.5)):
        again.set_adapters(["a", "b"], list(weights))
        pictures_at[weights] = draw()
    distance = lambda w: (pictures_at[w] - base).square().mean()
    assert distance((0.0, 0.0)) < 1e-9 and 0 < distance((0.5, 0.0)) < distance((1.0, 0.0))
    assert torch.allclose(pictures_at[0.5, 0.5], pictures_at[1.0, 0.0], atol=1e-4)
