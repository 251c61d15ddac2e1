"""A DRaFT step's gradient is the end-to-end one of its definition; what is not finite leaves the batch."""

import io

import pytest
import torch
from PIL import Image

from icthp import images, pipelines
from icthp.microworld import grammar
from icthp.tuning import draft, encoding, flow
from icthp.tuning.lora import add_lora, without_lora

STEPS = 3


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
    sigma = flow.noise_levels(pipe, STEPS).tolist()
    copies = lambda x: (p.repeat(len(x) // 3, *[1] * (p.ndim - 1)) for p in prompt)
    velocity = lambda x, s: pipe.transformer(x, *copies(x), torch.full((len(x),), s * 1000), return_dict=False)[0]
    euler = lambda x, i: x + (sigma[i + 1] - sigma[i]) * velocity(x, sigma[i])
    x = torch.randn(3, 4, 8, 8, generator=generator)
    with torch.no_grad():
        for i in range(STEPS):
            x = euler(x, i)
    x = (1 - sigma[-2]) * x.repeat(2, 1, 1, 1) + sigma[-2] * torch.randn(6, 4, 8, 8, generator=generator)
    value = reward(flow.decode(pipe, euler(x, STEPS - 1)), torch.arange(3).repeat(2))
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


def test_anchor_pulls_towards_the_base(pipe, prompt):
    """The gradient that it adds, by hand for the one step that has a graph."""
    (_, plain), (_, anchored) = gradient(pipe, prompt), gradient(pipe, prompt, anchor=0.7)
    x, sigma = torch.randn(3, 4, 8, 8, generator=torch.Generator().manual_seed(0)), flow.noise_levels(pipe, STEPS).tolist()
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
    nan_reward = lambda pixels, rows: torch.where(rows == 1, torch.nan, 1) * reward(pixels, rows)
    of_two = lambda pixels, rows: (rows != 1) * reward(pixels, rows) * 3 / 2  # the mean over two of three
    run = lambda reward, **o: draft.draft_step(pipe, *prompt, reward, steps=STEPS, generator=torch.Generator().manual_seed(0), **o)

    def left(reward):
        for p in lora(pipe):
            p.grad = None
        return run(reward), torch.cat([p.grad.flatten() for p in lora(pipe)])

    (step, some), (_, expected) = left(nan_reward), left(of_two)
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
        cond = [embeds[rows], prompt[1][rows]]
        step = draft.draft_step(pipe, *cond, worth, steps=STEPS, generator=noise(rows), **options)
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


def test_a_bfloat16_pipeline_leaves_float32_gradients(sd3_folder, scenes):
    pipe = pipelines.load_pipeline(str(sd3_folder), torch.bfloat16)
    parameters = add_lora(pipe, rank=2)
    embeds, pooled = encoding.encode(pipe, grammar.captions(scenes[:3]))
    step = draft.draft_step(pipe, embeds, pooled, reward, steps=STEPS, generator=torch.Generator().manual_seed(0))
    assert embeds.dtype == torch.bfloat16 and step.pixels.dtype == torch.float32
    assert all(p.dtype == torch.float32 for p in parameters)
    assert sum(p.grad.norm() for p in parameters if p.grad is not None) > 0
