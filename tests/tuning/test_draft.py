import hashlib
import io
import json
import random
import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from diffusers import AutoencoderKL, DDIMScheduler, SD3Transformer2DModel, StableDiffusionPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPTextModel

from icthp import images, pipelines, timing
from icthp.microworld import grammar, models, renderer
from icthp.scorers.clip import ClipScorer, load_clip
from icthp.tuning import dpo, draft, sampling, training
from icthp.tuning.lora import LORA_TARGETS, add_lora, merged, save_lora, without_lora

STEPS = 3


@pytest.fixture
def prompt(pipe, scenes):
    return sampling.encode(pipe, grammar.captions(scenes[:3]))


def reward(pixels, rows):
    """Smooth, different for every prompt, not linear in the pixels."""
    return (pixels.square().mean((1, 2, 3)) - pixels[:, 0].mean((1, 2))) * (1 + rows)


def lora(pipe):
    return [p for p in pipe.transformer.parameters() if p.requires_grad]


def gradient(pipe, prompt, **options):
    for p in lora(pipe):
        p.grad = None
    step = draft.draft_step(pipe, *prompt, reward, steps=STEPS, generator=torch.Generator().manual_seed(0), **options)
    return step, torch.cat([p.grad.flatten() for p in lora(pipe)])


def end_to_end(pipe, prompt, k):
    """The definition, by the pipeline's own scheduler and one autograd graph through sampler, decoder and reward."""
    embeds, pooled = prompt
    x = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    pipe.scheduler.set_timesteps(STEPS)
    for i, t in enumerate(pipe.scheduler.timesteps):
        x = x.detach() if i == STEPS - k else x
        v = pipe.transformer(x, embeds, pooled, t.expand(3), return_dict=False)[0]
        x = pipe.scheduler.step(v, t, x, return_dict=False)[0]
    pixels = pipe.vae.decode(x / pipe.vae.config.scaling_factor + pipe.vae.config.shift_factor).sample
    value = reward((pixels / 2 + 0.5).clamp(0, 1), torch.arange(3))
    return value, torch.cat([g.flatten() for g in torch.autograd.grad(-value.mean(), lora(pipe))])


def test_latents_and_decode_make_the_autoencoder(pipe):
    pipe.vae.register_to_config(scaling_factor=0.7, shift_factor=0.2)
    pixels = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    there_and_back = sampling.decode(pipe, sampling.latents(pipe, pixels))
    torch.testing.assert_close(there_and_back, (pipe.vae(pixels * 2 - 1).sample / 2 + 0.5).clamp(0, 1))


@pytest.mark.parametrize("k", [1, 2, STEPS])
def test_staged_gradient_is_the_end_to_end_one(pipe, prompt, k):
    step, staged = gradient(pipe, prompt, k=k, decode_batch=2)
    value, whole = end_to_end(pipe, prompt, k)
    assert torch.allclose(step.rewards, value, atol=1e-6)
    assert (staged - whole).norm() <= 1e-5 * whole.norm() and whole.norm() > 0


def test_more_steps_with_a_graph_change_the_gradient(pipe, prompt):
    one, all_ = (gradient(pipe, prompt, k=k)[1] for k in (1, STEPS))
    assert (one - all_).norm() > 1e-3 * all_.norm()


def test_no_graph_before_the_last_k_steps(pipe, prompt):
    """Tensors saved for backward are counted: none while the first steps run."""
    saved, calls = [0], []
    pipe.transformer.register_forward_hook(lambda *_: calls.append(saved[0]))
    with torch.autograd.graph.saved_tensors_hooks(lambda t: saved.__setitem__(0, saved[0] + 1) or t, lambda t: t):
        gradient(pipe, prompt, k=1)
    assert calls[:2] == [0, 0] and calls[2] > 100


def test_lv_with_one_copy_of_the_last_step(pipe, prompt):
    """DRaFT-LV by hand: finish the sample, noise it to the last level, denoise once with a graph."""
    step, staged = gradient(pipe, prompt, lv_samples=2)
    assert step.rewards.shape == (6,) and step.pixels.shape[0] == 6
    generator = torch.Generator().manual_seed(0)
    sigma = sampling.noise_levels(pipe, STEPS).tolist()
    copies = lambda x: (p.repeat(len(x) // 3, *[1] * (p.ndim - 1)) for p in prompt)
    velocity = lambda x, s: pipe.transformer(x, *copies(x), torch.full((len(x),), s * 1000), return_dict=False)[0]
    euler = lambda x, i: x + (sigma[i + 1] - sigma[i]) * velocity(x, sigma[i])
    x = torch.randn(3, 4, 8, 8, generator=generator)
    with torch.no_grad():
        for i in range(STEPS):
            x = euler(x, i)
    x = (1 - sigma[-2]) * x.repeat(2, 1, 1, 1) + sigma[-2] * torch.randn(6, 4, 8, 8, generator=generator)
    value = reward(sampling.decode(pipe, euler(x, STEPS - 1)), torch.arange(3).repeat(2))
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(-value.mean(), lora(pipe))])
    assert (staged - whole).norm() <= 1e-5 * whole.norm()


@pytest.mark.parametrize(
    "options", [{"recompute_last_steps": True}, {"merge": True}, {"recompute_last_steps": True, "merge": True, "decode_batch": 1}]
)
@pytest.mark.parametrize("k", [1, 2])
def test_memory_and_speed_change_no_gradient(pipe, prompt, k, options):
    before = {name: p.clone() for name, p in pipe.transformer.named_parameters()}
    (_, plain), (_, other) = gradient(pipe, prompt, k=k), gradient(pipe, prompt, k=k, **options)
    assert (plain - other).norm() <= 1e-5 * plain.norm()
    assert all(torch.equal(p, before[name]) for name, p in pipe.transformer.named_parameters())  # merged weights came back


def test_merged_draws_what_the_lora_draws(pipe, prompt):
    run = lambda: pipe.transformer(torch.ones(3, 4, 8, 8), *prompt, torch.full((3,), 500.0), return_dict=False)[0].detach()
    plain = run()
    with merged(pipe.transformer):
        within, moved = run(), pipe.transformer.transformer_blocks[0].attn.to_q.merged
    with without_lora(pipe.transformer):
        base = run()
    assert moved and torch.allclose(within, plain, atol=1e-5) and torch.equal(run(), plain) and not torch.allclose(base, plain, atol=1e-3)


def test_guidance_is_the_pipelines(pipe, scenes, prompt):
    step, staged = gradient(pipe, prompt, guidance=3.0, negative=sampling.encode(pipe, [""]))
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = pipe(grammar.captions(scenes[:3]), latents=noise, num_inference_steps=STEPS, guidance_scale=3.0, output_type="pt",
                 max_sequence_length=1).images  # fmt: skip
    assert torch.allclose(step.pixels, drawn, atol=1e-5)
    assert (staged - gradient(pipe, prompt)[1]).norm() > 1e-3 * staged.norm()
    with pytest.raises(ValueError, match="negative"):
        gradient(pipe, prompt, guidance=3.0)


def test_anchor_pulls_towards_the_base(pipe, prompt):
    """The gradient that it adds, by hand for the one step that has a graph."""
    (_, plain), (_, anchored) = gradient(pipe, prompt), gradient(pipe, prompt, anchor=0.7)
    x, sigma = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), sampling.noise_levels(pipe, STEPS).tolist()
    velocity = lambda i: pipe.transformer(x, *prompt, torch.full((3,), sigma[i] * 1000), return_dict=False)[0]
    with torch.no_grad():
        for i in range(STEPS - 1):
            x = x + (sigma[i + 1] - sigma[i]) * velocity(i)
        with without_lora(pipe.transformer):
            base = velocity(STEPS - 1)
    penalty = 0.7 * (velocity(STEPS - 1) - base).square().mean()
    added = torch.cat([g.flatten() for g in torch.autograd.grad(penalty, lora(pipe))])
    assert (anchored - plain - added).norm() <= 1e-4 * added.norm()


def test_a_picture_without_a_finite_reward_is_left_out(pipe, prompt):
    """The others' gradient is what it would be without it; if none is left the step says so."""
    broken = lambda pixels, rows: torch.where(rows == 1, torch.nan, 1) * reward(pixels, rows)
    few = lambda pixels, rows: (rows != 1) * reward(pixels, rows) * 3 / 2  # the mean over two of three
    run = lambda reward, **o: draft.draft_step(pipe, *prompt, reward, steps=STEPS, generator=torch.Generator().manual_seed(0), **o)

    def left(reward):
        for p in lora(pipe):
            p.grad = None
        return run(reward), torch.cat([p.grad.flatten() for p in lora(pipe)])

    (step, some), (_, expected) = left(broken), left(few)
    assert step.valid.tolist() == [True, False, True] and step.rewards[1].isnan()
    assert (some - expected).norm() <= 1e-5 * expected.norm()
    with pytest.raises(FloatingPointError, match="no picture"):
        run(lambda pixels, rows: reward(pixels, rows) * torch.nan)


@pytest.mark.parametrize("options", [{}, {"k": 2, "recompute_last_steps": True}, {"k": 2, "anchor": 0.7, "merge": True}, {"lv_samples": 2}])
def test_a_sample_that_is_not_finite_leaves_the_batch(pipe, prompt, options):
    """One prompt embedding is infinite: rewards and gradients are those of a batch that never had it."""
    noise = lambda rows: [torch.Generator().manual_seed(100 + i) for i in rows]

    def run(rows, embeds, worth=reward):
        for p in lora(pipe):
            p.grad = None
        told = [embeds[rows], prompt[1][rows]]
        step = draft.draft_step(pipe, *told, worth, steps=STEPS, generator=noise(rows), **options)
        return step, torch.cat([p.grad.flatten() for p in lora(pipe)])

    ill = prompt[0].clone()
    ill[1, 0, 0] = torch.inf
    copies = options.get("lv_samples", 1)
    (step, found), (without, expected) = run([0, 1, 2], ill), run([0, 2], prompt[0], lambda pixels, rows: reward(pixels, rows * 2))
    assert step.valid.tolist() == [True, False, True] * copies and step.pixels[1].isnan().all()
    if not options.get("lv_samples"):  # whose second noise is drawn in turn by each generator all the same
        assert torch.allclose(step.rewards[step.valid], without.rewards, atol=1e-5)
    assert (found - expected).norm() <= 1e-4 * expected.norm() and expected.norm() > 0
    with pytest.raises(FloatingPointError, match="no picture"):
        run([1], ill)
    finite = lambda pixels, rows: reward(pixels.nan_to_num(), rows)  # a reward that hides it
    assert run([0, 1, 2], ill, finite)[0].valid.tolist() == [True, False, True] * copies


def test_a_reward_of_another_shape_is_named(pipe, prompt):
    with pytest.raises(ValueError, match=r"must have the shape \(3,\), not \(3, 1\)"):
        draft.draft_step(pipe, *prompt, lambda x, rows: x.mean((1, 2, 3))[:, None], steps=STEPS, generator=torch.Generator())


def test_lora_targets_and_alpha(sd3_folder):
    pipe = pipelines.load_pipeline(str(sd3_folder))
    add_lora(pipe, rank=2, alpha=8, targets=["to_q"])
    layers = [m for _, m in pipe.transformer.named_modules() if hasattr(m, "lora_A")]
    assert len(layers) == len(pipe.transformer.transformer_blocks) and layers[0].scaling["default"] == 4


def test_training_pictures_are_the_pipelines(pipe, prompt, scenes):
    """The sampler of the training step and the pipeline's own draw the same picture from the same noise."""
    step, _ = gradient(pipe, prompt, k=1)
    noise = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    drawn = pipe(grammar.captions(scenes[:3]), latents=noise, num_inference_steps=STEPS, guidance_scale=0, output_type="pt",
                 max_sequence_length=1).images  # fmt: skip
    assert torch.allclose(step.pixels, drawn, atol=1e-5)


def test_a_saved_lora_draws_the_same_pictures_in_plain_diffusers(pipe, sd3_folder, scenes, tmp_path):
    prompts = grammar.captions(scenes[:2])
    base = sampling.generate(pipelines.load_pipeline(str(sd3_folder)), prompts, steps=STEPS)
    tuned = sampling.generate(pipe, prompts, steps=STEPS)
    save_lora(pipe, tmp_path)
    again = pipelines.load_pipeline(str(sd3_folder))
    again.load_lora_weights(str(tmp_path))
    assert (tuned - base).abs().max() > 0.01
    assert torch.allclose(sampling.generate(again, prompts, steps=STEPS), tuned, atol=1e-5)


def test_only_the_lora_trains(pipe, prompt):
    gradient(pipe, prompt, k=1)
    names = [n for n, p in pipe.transformer.named_parameters() if p.grad is not None]
    assert names and all("lora_" in n for n in names)
    assert not any(p.requires_grad for part in (pipe.vae, pipe.text_encoder, pipe.text_encoder_2) for p in part.parameters())


@pytest.mark.parametrize("options", [{"k": 0}, {"k": STEPS + 1}, {"k": 2, "lv_samples": 2}])
def test_k_outside_its_range(pipe, prompt, options):
    with pytest.raises(ValueError, match="k must lie in"):
        gradient(pipe, prompt, **options)


def test_a_detached_reward_fails_loudly(pipe, prompt):
    with pytest.raises(ValueError, match="no gradient in the pixels"):
        draft.draft_step(pipe, *prompt, lambda pixels, rows: pixels.detach().mean((1, 2, 3)), steps=STEPS, generator=torch.Generator())


def test_a_detached_decoder_fails_loudly(pipe, prompt, monkeypatch):
    decode = pipe.vae.decode
    monkeypatch.setattr(pipe.vae, "decode", lambda x: decode(x.detach()))
    with pytest.raises(ValueError, match="no gradient in the pixels"):
        gradient(pipe, prompt)


def test_pillow_in_the_graph_fails_loudly(pipe, prompt):
    through_bytes = lambda pixels, rows: images.stack([Image.open(io.BytesIO(r["bytes"])) for r in images.encode(pixels)]).mean((1, 2, 3))
    with pytest.raises(ValueError, match="no gradient in the pixels"):
        draft.draft_step(pipe, *prompt, through_bytes, steps=STEPS, generator=torch.Generator())


def test_dynamic_shifting_is_refused(pipe, prompt):
    pipe.scheduler.register_to_config(use_dynamic_shifting=True)
    with pytest.raises(ValueError, match="dynamic shifting"):
        gradient(pipe, prompt, k=1)


def test_a_bfloat16_pipeline_leaves_float32_gradients(sd3_folder, scenes):
    pipe = pipelines.load_pipeline(str(sd3_folder), torch.bfloat16)
    parameters = add_lora(pipe, rank=2)
    embeds, pooled = sampling.encode(pipe, grammar.captions(scenes[:3]))
    step = draft.draft_step(pipe, embeds, pooled, reward, steps=STEPS, generator=torch.Generator().manual_seed(0))
    assert embeds.dtype == torch.bfloat16 and step.pixels.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in parameters)
    assert sum(p.grad.norm() for p in parameters if p.grad is not None) > 0


def test_base_steps_leave_the_layout_to_the_base(pipe, sd3_folder, scenes):
    prompts = grammar.captions(scenes[:3])
    draw = lambda p, **o: sampling.generate(p, prompts, steps=STEPS, batch=2, **o)
    base, tuned = draw(pipelines.load_pipeline(str(sd3_folder))), draw(pipe)
    late = [draw(pipe, base_steps=n) for n in range(STEPS + 1)]
    assert torch.equal(late[0], tuned) and torch.allclose(late[STEPS], base, atol=1e-5)
    away = [(x - base).square().mean() for x in late]
    assert away[0] > away[STEPS - 1] > away[STEPS]
    assert torch.equal(draw(pipe), tuned)
    with pytest.raises(ValueError, match="base_steps"):
        draw(pipe, base_steps=STEPS + 1)
    pipe.vae.decode = None  # a failure on the way
    with pytest.raises(TypeError):
        draw(pipe, base_steps=1)
    assert not any(m.disable_adapters for m in pipe.transformer.modules() if hasattr(m, "lora_A"))


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
    away = lambda w: (pictures_at[w] - base).square().mean()
    assert away((0.0, 0.0)) < 1e-9 and 0 < away((0.5, 0.0)) < away((1.0, 0.0))
    assert torch.allclose(pictures_at[0.5, 0.5], pictures_at[1.0, 0.0], atol=1e-4)


def test_dpo_is_its_formula(pipe, prompt):
    """One pair at a time, by hand; and log 2 for equal pictures, or where the LoRA is still new and does nothing."""
    won, lost = torch.randn(2, 3, 4, 8, 8, generator=torch.Generator().manual_seed(1))
    loss = lambda a, b: dpo.dpo_loss(pipe, *prompt, a, b, beta=5.0, generator=torch.Generator().manual_seed(2))
    generator, total = torch.Generator().manual_seed(2), 0
    noise, level = torch.randn(3, 4, 8, 8, generator=generator), torch.rand(3, generator=generator)

    def error(x0, i):
        sigma = 3 * level[i : i + 1] / (1 + 2 * level[i : i + 1])
        x = (1 - sigma) * x0[i : i + 1] + sigma * noise[i]
        v = pipe.transformer(x, *(p[i : i + 1] for p in prompt), sigma * 1000, return_dict=False)[0]
        return (v - (noise[i] - x0[i])).square().mean()

    for i in range(3):
        tuned = error(won, i) - error(lost, i)
        with without_lora(pipe.transformer):
            base = error(won, i) - error(lost, i)
        total = total - torch.nn.functional.logsigmoid(-5.0 / 2 * (tuned - base)) / 3
    assert loss(won, lost).item() == pytest.approx(total.item(), rel=1e-4)
    assert loss(won, won).item() == pytest.approx(0.6931, abs=1e-4)
    gradient = torch.autograd.grad(loss(won, lost), lora(pipe), allow_unused=True)
    assert sum(g.norm() for g in gradient if g is not None) > 0
    for name, p in pipe.transformer.named_parameters():
        if "lora_B" in name:
            torch.nn.init.zeros_(p)
    assert loss(won, lost).item() == pytest.approx(0.6931, abs=1e-4)


KILLED = """
import os, sys
from functools import partial
import torch
from icthp import draft, hub, loop
sd3, out = sys.argv[1:3]
rate = loop.learning_rate
torch.set_num_threads(1)
def tune(name):
    pipe = hub.load_pipeline(sd3)
    draft.add_lora(pipe, rank=2)
    watch = lambda *_: draft.generate(pipe, ["a red circle"], steps=2).mean()
    draft.tune(pipe, ["a red circle", "two blue stars", "a green heart"], lambda pixels, prompts: -pixels.square().mean((1, 2, 3)),
               partial(draft.draft_step, steps=2, merge=True), batch=4, steps=9, lr=1e-2, checkpoint=f"{out}/{name}/c.pt", save_every=2,
               validate=watch, validate_every=3)
    draft.save_lora(pipe, f"{out}/{name}")
for name, die_at in (pair.split("=") for pair in sys.argv[3:]):
    if os.fork():
        print(os.WTERMSIG(os.wait()[1]))
        continue
    loop.learning_rate = lambda step, **kw: os.kill(os.getpid(), 9) if step == int(die_at) else rate(step, **kw)
    tune(name)
    os._exit(0)
"""


def test_kill_9_three_times_gives_the_same_adapter(sd3_folder, tmp_path):
    """Bit for bit that of a run that nobody killed."""
    steps = sorted(random.sample(range(1, 9), 3))
    runs = ["whole=-1", *(f"killed={step}" for step in steps), "killed=-1"]
    done = subprocess.run([sys.executable, "-c", KILLED, sd3_folder, tmp_path, *runs], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "9", "9", "9", "0"], done.stderr[-2000:]
    whole, killed = (load_file(tmp_path / name / "pytorch_lora_weights.safetensors") for name in ("whole", "killed"))
    assert whole.keys() == killed.keys() and all(torch.equal(whole[k], killed[k]) for k in whole), f"killed at {steps}"


SHARED = """
import sys
from functools import partial
import torch
from icthp import draft, hub
sd3, out, method = sys.argv[1:]
torch.set_num_threads(1)
pipe = hub.load_pipeline(sd3)
draft.add_lora(pipe, rank=2)
update = {"draft": partial(draft.draft_step, steps=2, lv_samples=2), "dpo": partial(draft.dpo_step, steps=2, beta=50.0)}[method]
reward = lambda pixels, prompts: -pixels.square().mean((1, 2, 3)) * torch.tensor([len(p) for p in prompts])
history = draft.tune(pipe, ["a red circle", "two blue stars", "a green heart"], reward, update, batch=4, steps=3, lr=1e-2, accumulate=2)
draft.save_lora(pipe, f"{out}.{__import__('accelerate').PartialState().process_index}")
print(history[-1]["reward"])
"""


@pytest.mark.parametrize("method", ["draft", "dpo"])
def test_two_processes_tune_as_one_does(sd3_folder, tmp_path, method):
    """Every picture has its own noise and gradients are averaged, so the number of processes changes nothing."""
    (tmp_path / "tune.py").write_text(SHARED)
    shared = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, command in (("one", []), ("two", shared)):
        command = [sys.executable, *command, tmp_path / "tune.py", sd3_folder, tmp_path / name, method]
        done = subprocess.run(command, capture_output=True, text=True)
        assert done.returncode == 0, done.stderr[-3000:]
    read = lambda name: torch.cat([t.flatten() for t in load_file(tmp_path / name / "pytorch_lora_weights.safetensors").values()])
    one, two, twin = read("one.0"), read("two.0"), read("two.1")
    assert torch.equal(two, twin) and torch.allclose(one, two, atol=1e-5)
    new = pipelines.load_pipeline(str(sd3_folder))
    add_lora(new, rank=2)
    save_lora(new, tmp_path / "new")
    assert (read("new") - one).norm() > {"draft": 0.1, "dpo": 0.01}[method]


def test_a_dpo_step_prefers_the_higher_reward(pipe, prompt):
    """Its gradient is dpo_loss's on the two pictures in the order of their rewards; one without a finite reward leaves its pair out."""

    def run(change=lambda x: x):
        for p in lora(pipe):
            p.grad = None
        worth = lambda pixels, rows: change(reward(pixels, rows))
        step = dpo.dpo_step(pipe, *prompt, worth, steps=STEPS, beta=5.0, generator=torch.Generator().manual_seed(0))
        return step, torch.cat([p.grad.flatten() for p in lora(pipe)])

    step, found = run()
    generator = torch.Generator().manual_seed(0)
    sigma, x = sampling.noise_levels(pipe, STEPS), torch.randn(3, 4, 8, 8, generator=generator)
    x = torch.cat([x, torch.randn(3, 4, 8, 8, generator=generator)])
    with torch.no_grad():
        for i in range(STEPS):
            v = pipe.transformer(x, *(p.repeat(2, *[1] * (p.ndim - 1)) for p in prompt), (sigma[i] * 1000).expand(6), return_dict=False)[0]
            x = x + (sigma[i + 1] - sigma[i]) * v
    rewards = reward(sampling.decode(pipe, x), torch.arange(3).repeat(2))
    assert torch.allclose(step.rewards, rewards, atol=1e-5) and step.valid.all()
    rows = torch.arange(3)
    better = torch.where(rewards[:3] >= rewards[3:], rows, rows + 3)
    loss = dpo.dpo_loss(pipe, *prompt, x[better], x[(better + 3) % 6], beta=5.0, generator=generator)
    whole = torch.cat([g.flatten() for g in torch.autograd.grad(loss, lora(pipe))])
    assert (found - whole).norm() <= 1e-4 * whole.norm()
    _, turned = run(lambda r: -r)
    assert torch.nn.functional.cosine_similarity(found, turned, dim=0) < 0
    step, _ = run(lambda r: r.where(torch.arange(len(r)) != 4, torch.nan))
    assert step.valid.tolist() == [True, False, True] * 2
    with pytest.raises(FloatingPointError, match="no pair"):
        run(lambda r: r * torch.nan)


def test_a_dpo_pair_that_is_not_finite_leaves_the_batch(pipe, prompt):
    """Its gradient is that of the batch without it."""

    def run(rows, embeds, worth=reward):
        for p in lora(pipe):
            p.grad = None
        noise = [torch.Generator().manual_seed(100 + i) for i in rows]
        step = dpo.dpo_step(pipe, embeds[rows], prompt[1][rows], worth, steps=STEPS, beta=5.0, generator=noise)
        return step, torch.cat([p.grad.flatten() for p in lora(pipe)])

    ill = prompt[0].clone()
    ill[1, 0, 0] = torch.inf
    (step, found), (_, expected) = run([0, 1, 2], ill), run([0, 2], prompt[0], lambda pixels, rows: reward(pixels, rows * 2))
    assert step.valid.tolist() == [True, False, True] * 2
    assert (found - expected).norm() <= 1e-4 * expected.norm() and expected.norm() > 0
    with pytest.raises(FloatingPointError, match="no pair"):
        run([1], ill, lambda pixels, rows: reward(pixels.nan_to_num(), rows))


# ---- memory and size ---------------------------------------------------------------------------------------------


def test_staging_takes_less_memory_and_no_more_time(tokenizer, scenes):
    """Peak of one DRaFT-1 step on four pictures of 64 pixels: staged, with and without the transformer's graph kept, against one
    graph through transformer, decoder and reward, and against a loop that samples under autograd and detaches."""
    torch.manual_seed(0)
    clip = models.new_clip(models.clip_config(tokenizer)).eval().requires_grad_(False)
    pipe = pipelines.fold_empty_t5(models.new_sd3(pipelines.text_tower(clip, tokenizer), tokenizer, models.new_vae(), latent_size=16))
    for p in pipe.transformer.parameters():
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    add_lora(pipe, 8)
    scorer, text = ClipScorer(clip, None), torch.nn.functional.normalize(torch.randn(4, 128), dim=-1)
    reward = lambda pixels, rows: (scorer.image_features(pixels) * text[rows]).sum(-1)
    embeds, pooled = sampling.encode(pipe, grammar.captions(scenes[:4]))

    def staged(**options):
        draft.draft_step(pipe, embeds, pooled, reward, steps=4, generator=torch.Generator().manual_seed(0), decode_batch=1, **options)

    def whole(always):
        x = torch.randn(4, 16, 16, 16, generator=torch.Generator().manual_seed(0))
        pipe.scheduler.set_timesteps(4)
        for i, t in enumerate(pipe.scheduler.timesteps):
            with torch.set_grad_enabled(always or i == 3):
                v = pipe.transformer(x.detach(), embeds, pooled, t.expand(4), return_dict=False)[0]
                x = pipe.scheduler.step(v, t, x.detach(), return_dict=False)[0]
        (-reward(sampling.decode(pipe, x), torch.arange(4)).mean()).backward()

    ways = {
        "whole": lambda: whole(False),
        "detached": lambda: whole(True),
        "kept": staged,
        "recompute_last_steps": lambda: staged(recompute_last_steps=True),
    }
    gradients, peaks = {}, {}
    for name, work in ways.items():
        for p in lora(pipe):
            p.grad = None
        work()
        gradients[name] = torch.cat([p.grad.flatten() for p in lora(pipe)])
        peaks[name] = timing.peak_bytes(work)  # the gradients are there already
    for name, bound in (("kept", 0.45), ("recompute_last_steps", 0.3)):
        assert (gradients[name] - gradients["whole"]).norm() <= 1e-5 * gradients["whole"].norm()
        assert peaks[name] <= bound * min(peaks["whole"], peaks["detached"])
    times = {name: min(t) for name, t in timing.benchmark(ways, 3).items()}
    assert times["kept"] <= 1.7 * times["whole"]  # 1.2 on a quiet machine; 0.95 at 128 pixels


def published(layers, heads, positions, **other):
    """Stable Diffusion 3.5's transformer by its published config, without memory."""
    with torch.device("meta"):
        return SD3Transformer2DModel(
            sample_size=128, in_channels=16, out_channels=16, num_layers=layers, attention_head_dim=64, num_attention_heads=heads,
            joint_attention_dim=4096, caption_projection_dim=64 * heads, pooled_projection_dim=2048, pos_embed_max_size=positions,
            qk_norm="rms_norm", **other)  # fmt: skip


SIZES = {"large": (38, 38, 192, {}, 8.057, 47.16), "medium": (24, 24, 384, {"dual_attention_layers": tuple(range(13))}, 2.243, 23.89)}


@pytest.mark.parametrize("name", SIZES)
def test_stable_diffusion_3_5_at_its_size(name):
    """Parameters (10^9), the LoRA's at rank 32 (10^6), and the shape that goes through one step."""
    layers, heads, positions, other, billions, millions = SIZES[name]
    transformer = published(layers, heads, positions, **other)
    assert sum(p.numel() for p in transformer.parameters()) / 1e9 == pytest.approx(billions, abs=5e-4)
    parts = SimpleNamespace(transformer=transformer, vae=None, text_encoder=None, text_encoder_2=None, text_encoder_3=None)
    assert sum(p.numel() for p in add_lora(parts, 32)) / 1e6 == pytest.approx(millions, abs=5e-3)
    targets = {name.split(".attn.")[1] for name, m in transformer.named_modules() if ".attn." in name and hasattr(m, "lora_A")}
    assert targets == set(LORA_TARGETS)
    x, embeds, pooled = (torch.empty(*shape, device="meta") for shape in ((1, 16, 64, 64), (1, 333, 4096), (1, 2048)))
    assert transformer(x, embeds, pooled, torch.empty(1, device="meta"), return_dict=False)[0].shape == x.shape


def test_flops_of_a_step_at_1024_pixels():
    """DRaFT-1 on Stable Diffusion 3.5 large, four steps, no guidance: 186 TFLOP a picture, with 1.34 for two ViT-H reward towers."""
    transformer = published(38, 38, 192)
    with torch.device("meta"):
        vae = AutoencoderKL(down_block_types=("DownEncoderBlock2D",) * 4, up_block_types=("UpDecoderBlock2D",) * 4, latent_channels=16,
                            block_out_channels=(128, 256, 512, 512), layers_per_block=2, use_quant_conv=False,
                            use_post_quant_conv=False).requires_grad_(False)  # fmt: skip
    add_lora(SimpleNamespace(transformer=transformer, vae=None, text_encoder=None, text_encoder_2=None, text_encoder_3=None), 32)
    x, embeds, pooled = (torch.empty(*shape, device="meta") for shape in ((1, 16, 128, 128), (1, 333, 4096), (1, 2048)))
    velocity = lambda: transformer(x, embeds, pooled, torch.empty(1, device="meta"), return_dict=False)[0]

    def tflops(work):
        with FlopCounterMode(display=False) as counter:
            work()
        return counter.get_total_flops() / 1e12

    with torch.no_grad(), merged(transformer):
        free = tflops(velocity)
    step = tflops(lambda: velocity().sum().backward())
    decoder = tflops(lambda: vae.decode(x.clone().requires_grad_()).sample.sum().backward())
    assert (free, step, decoder) == (pytest.approx(31.12, abs=0.01), pytest.approx(69.95, abs=0.01), pytest.approx(21.49, abs=0.01))
    assert 3 * free + step + decoder + 1.34 == pytest.approx(186.1, abs=0.1)


# ---- many pictures -----------------------------------------------------------------------------------------------

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
        seen = sampling.decode(pipe, sampling.latents(pipe, before))  # what the autoencoder makes of the picture
    distance = [(draw(strength) - seen).square().mean() for strength in (0.25, 0.5, 1.0)]
    assert distance[0] < distance[1] < distance[2]
    start = lambda rows: before[rows]
    edit = lambda start: list(sampling.generate_shards(pipe, texts, range(4), tmp_path, shard=2, start=start, steps=4, strength=0.5))
    first = edit(start)
    assert len(list(tmp_path.glob("*"))) == 2 and edit(start) == first and len(list(tmp_path.glob("*"))) == 2
    edit(lambda rows: 1 - before[rows])
    assert len(list(tmp_path.glob("*"))) == 4  # other pictures, other files


def test_a_text_in_place_of_a_list_is_refused(pipe, tmp_path):
    update = lambda *_, **__: None
    for call in (lambda: sampling.generate(pipe, "a cat", steps=1), lambda: sampling.encode(pipe, "a cat"),
                 lambda: sampling.generate_shards(pipe, "a cat", [0], tmp_path, steps=1),
                 lambda: training.tune(pipe, "a cat", None, update, batch=1, steps=1, lr=1.0)):  # fmt: skip
        with pytest.raises(ValueError, match=r"a list of texts, not one text: \['a cat'\]"):
            call()
    with pytest.raises(ValueError, match="no prompt"):
        sampling.encode(pipe, [])


def test_no_prompts_are_no_pictures(pipe):
    side = pipe.transformer.config.sample_size * pipe.vae_scale_factor
    assert sampling.generate(pipe, [], steps=1).shape == (0, 3, side, side) == (0, *sampling.generate(pipe, ["a cat"], steps=1).shape[1:])
    assert sampling.generate(pipe, [], steps=1, size=(16, 32)).shape == (0, 3, 16, 32)
    assert sampling.generate(pipe, [], steps=1, start=torch.rand(0, 3, 8, 16)).shape == (0, 3, 8, 16)


def test_ids_and_start_pictures_are_one_a_prompt(pipe):
    for options in ({"ids": [1]}, {"start": torch.rand(1, 3, 16, 16)}):
        with pytest.raises(ValueError, match="2 prompts need as many ids and start pictures"):
            sampling.generate(pipe, ["a cat", "a dog"], steps=2, **options)


def test_a_size_that_is_no_square(pipe, prompt, scenes):
    """Training step and sampler draw the same picture of it; one that the patches do not divide is refused."""
    texts = grammar.captions(scenes[:3])
    noise = lambda: [torch.Generator().manual_seed(7 + i) for i in range(3)]
    step = draft.draft_step(pipe, *prompt, reward, steps=STEPS, generator=noise(), size=(16, 32))
    assert step.pixels.shape == (3, 3, 16, 32)
    assert torch.allclose(step.pixels, sampling.generate(pipe, texts, steps=STEPS, seed=7, size=(16, 32)), atol=1e-5)
    with pytest.raises(ValueError, match="multiple of 8 pixels"):
        draft.draft_step(pipe, *prompt, reward, steps=STEPS, generator=noise(), size=20)


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
        "import hashlib, json, sys, torch; from icthp import pipelines, tuning\n"
        "torch.set_num_threads(1); folder, out, texts = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])\n"
        f"rows = tuning.generate_shards(pipelines.load_pipeline(folder), texts, list(range(7)), out, shard=2, **{DRAW})\n"
        "digest, state = hashlib.sha256(b''.join(r['bytes'] for r in rows)).hexdigest(), __import__('accelerate').PartialState()\n"
        "open(f'{out}.{state.process_index}', 'w').write(f'{digest} {state.num_processes}')\n"
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
    assert [(tmp_path / f"two.{rank}").read_text(encoding="utf-8") for rank in (0, 1)] == [f"{digest} 2"] * 2


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


def test_an_edits_steps_are_counted_as_diffusers_does(pipe):
    """0.6 of four steps are three."""
    start = torch.rand(1, 3, 16, 16)
    draw = lambda **options: sampling.generate(pipe, ["a red circle"], steps=4, start=start, strength=0.6, **options)
    assert draw(base_steps=3).shape == (1, 3, 16, 16)
    with pytest.raises(ValueError, match=r"0\.\.3"):
        draw(base_steps=4)
