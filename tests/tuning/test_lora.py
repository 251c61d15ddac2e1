"""What is saved comes back, equal in pictures; and what an adapter, a LoRA beside it or a wrapped transformer changes."""

from functools import partial

import diffusers.loaders.peft
import pytest
import torch
from diffusers import StableDiffusion3Pipeline
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from icthp import pipelines
from icthp.tuning import draft, lora, sampling, training

PROMPTS = ["a red circle", "two blue squares"]
FILE = "pytorch_lora_weights.safetensors"


@pytest.fixture
def load(sd3_folder):
    return lambda: pipelines.load_pipeline(str(sd3_folder))


def draw(pipe):
    return sampling.generate(pipe, PROMPTS, steps=2)


def apart(a, b):
    return (a - b).abs().max().item()


def trained(pipe, seed=1, std=0.2, **options):
    """With a LoRA that does something."""
    for p in lora.add_lora(pipe, **{"rank": 2} | options):
        torch.nn.init.normal_(p, std=std, generator=torch.Generator().manual_seed(seed))
    return pipe


@pytest.fixture
def style(load, tmp_path):
    """The folder of a LoRA of another rank and other layers than `trained`'s."""
    lora.save_lora(trained(load(), seed=2, rank=3, targets=["to_q", "to_v"]), tmp_path / "style")
    return tmp_path / "style"


# ---- saved and loaded ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{"rank": 4, "alpha": 16.0}, {"rank": 4, "alpha": 1}, {"rank": 3, "targets": ["to_q", "to_out.0"]}])
def test_alpha_rank_and_targets_come_back(load, tmp_path, options):
    pipe = trained(load(), **options)
    lora.save_lora(pipe, tmp_path)
    again, blind = load(), load()
    again.load_lora_weights(str(tmp_path))
    blind.load_lora_weights(load_file(tmp_path / FILE))  # a reader that sees no more than the tensors
    want = draw(pipe)
    assert apart(want, draw(load())) > 0.005 and apart(draw(again), want) < 1e-4 and apart(draw(blind), want) < 1e-4


def test_ranks_and_alphas_of_single_layers_come_back(load, tmp_path):
    pipe = load()
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_k", "to_v"], rank_pattern={"to_q": 4},
                                            alpha_pattern={"to_k": 7}, use_rslora=True), lora.OURS)  # fmt: skip
    for p in lora.train_ours(pipe.transformer):
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(1))
    lora.save_lora(pipe, tmp_path)
    again = load()
    lora.load_lora(again, tmp_path)
    assert apart(draw(pipe), draw(load())) > 0.005 and apart(draw(again), draw(pipe)) < 1e-4


def test_the_strength_is_saved_too(load, tmp_path):
    pipe, again = trained(load()), load()
    pipe.set_adapters([lora.OURS], [0.5])
    lora.save_lora(pipe, tmp_path)
    lora.load_lora(again, tmp_path)
    assert apart(draw(again), draw(pipe)) < 1e-4


class Wrapped(torch.nn.parallel.DistributedDataParallel):
    """As DistributedDataParallel holds a module, without processes."""

    def __init__(self, module):
        torch.nn.Module.__init__(self)
        self.module = module


def compiled(pipe):
    pipe.transformer = torch.compile(pipe.transformer, backend="eager")


def compiled_in_place(pipe):
    pipe.transformer.compile(backend="eager")


def compiled_blocks(pipe):
    blocks = pipe.transformer.transformer_blocks
    for i, block in enumerate(blocks):
        blocks[i] = torch.compile(block, backend="eager")


def wrapped(pipe):
    pipe.register_modules(transformer=Wrapped(pipe.transformer))


@pytest.mark.parametrize("wrap", [compiled, compiled_in_place, compiled_blocks, wrapped])
def test_a_wrapped_transformer_is_saved_under_plain_names(load, tmp_path, wrap):
    pipe = trained(load(), alpha=6)
    lora.save_lora(pipe, tmp_path / "plain")
    wrap(pipe)
    lora.save_lora(pipe, tmp_path / "wrapped")
    one, two = (load_file(tmp_path / name / FILE) for name in ("plain", "wrapped"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_compiled_transformer_tunes_and_takes_a_lora(load, tmp_path):
    pipe, reward = load(), lambda pixels, prompts: pixels[:, 0].mean((1, 2))
    compiled(pipe)
    lora.add_lora(pipe, 2)
    training.tune(pipe, PROMPTS, reward, partial(draft.draft_step, steps=2), batch=2, steps=2, lr=1e-2, checkpoint=tmp_path / "c.pt")
    assert not any("_orig_mod" in name for name in torch.load(tmp_path / "c.pt", weights_only=True)["model"])
    lora.save_lora(pipe, tmp_path)
    again = load()
    lora.load_lora(again, tmp_path)
    assert apart(draw(again), draw(pipe)) < 1e-4


def test_without_a_lora_nothing_is_saved(load, tmp_path):
    with pytest.raises(ValueError, match="no LoRA of add_lora"):
        lora.save_lora(load(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def broken(state, how):
    first, *others = sorted(state)
    return {
        "NaN": state | {first: state[first] * torch.nan},
        "infinite": state | {first: state[first].index_fill(0, torch.tensor([0]), torch.inf)},
        "another prefix": {name.replace("transformer.", "unet.", 1): value for name, value in state.items()},
        "another model": {name.replace("transformer_blocks.1", "transformer_blocks.9"): value for name, value in state.items()},
        "half": {name: value for name, value in state.items() if name != first},
        "empty": {},
        "another width": {name: value[:, :8].contiguous() if "lora_A" in name else value for name, value in state.items()},
    }[how]


SAYS = {"NaN": "is not finite", "infinite": "is not finite", "another prefix": r"30 of its 30 weights .* names such as transformer\.",
        "another model": r"fit no layer of this pipeline, transformer\.transformer_blocks\.9", "half": r"has no .*lora_A\.weight beside it",
        "empty": "it is empty", "another width": "the LoRA of another model"}  # fmt: skip


@pytest.mark.parametrize("how", SAYS)
def test_a_lora_that_would_not_draw_is_refused(load, tmp_path, how):
    """And the pipeline draws and lists what it did."""
    lora.save_lora(trained(load()), tmp_path)
    save_file(broken(load_file(tmp_path / FILE), how), tmp_path / FILE)
    pipe = load()
    before = draw(pipe)
    with pytest.raises(ValueError, match=SAYS[how]):
        lora.load_lora(pipe, tmp_path)
    assert not any(pipe.get_list_adapters().values()) and torch.equal(draw(pipe), before)


def test_a_lora_file_that_is_cut_or_not_there_is_named(load, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no {FILE}"):
        lora.load_lora(load(), tmp_path)
    lora.save_lora(trained(load()), tmp_path)
    with open(tmp_path / FILE, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=f"{tmp_path}: its LoRA cannot be read"):
        lora.load_lora(load(), tmp_path)


def test_a_pipeline_with_a_lora_inside_is_not_written(load, tmp_path):
    """Fused, as the refusal says, its folder draws the tuned pictures."""
    pipe = trained(load())
    want = draw(pipe)
    with pytest.raises(ValueError, match=r"fuse_lora\(\) and then pipe\.unload_lora_weights\(\)"):
        pipelines.save_sd3(pipe, tmp_path / "whole")
    assert not (tmp_path / "whole").exists()
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="unload_lora_weights"):
        pipelines.save_sd3(pipe, tmp_path / "whole")
    pipe.unload_lora_weights()
    compiled(pipe)
    pipelines.save_sd3(pipe, tmp_path / "whole")
    assert apart(want, draw(load())) > 0.02 and apart(draw(pipelines.load_pipeline(str(tmp_path / "whole"))), want) < 5e-3  # float16


# ---- beside another LoRA ---------------------------------------------------------------------------------------------------

TUNE = dict(batch=2, steps=3, lr=1e-2)
UPDATE = partial(draft.draft_step, steps=2)


def brighter(pixels, prompts):
    return pixels[:, 0].mean((1, 2))


def of(pipe, name):
    return {n: p.detach().clone() for n, p in pipe.transformer.named_parameters() if f".{name}." in n}


def styled(pipe, style, strength=1.0):
    lora.load_lora(pipe, style, "style")
    pipe.set_adapters(["style"], [strength])
    return pipe


def test_tuning_beside_a_loaded_lora(load, style, tmp_path):
    """It stays active, at its strength, and frozen; what is saved is the tuning alone; "untuned" is the base with the loaded one."""
    pipe = styled(load(), style, 0.5)
    before = draw(pipe)
    parameters = lora.add_lora(pipe, 2)
    assert apart(before, draw(load())) > 1e-3 and apart(draw(pipe), before) < 1e-5
    assert {id(p) for p in pipe.transformer.parameters() if p.requires_grad} == {id(p) for p in parameters}
    theirs, base = of(pipe, "style"), {n: p.clone() for n, p in pipe.transformer.named_parameters() if "lora_" not in n}
    pipe.set_adapters(["style", lora.OURS], [0.5, 1.0])  # after which both would train
    training.tune(pipe, PROMPTS, brighter, partial(draft.draft_step, steps=2, anchor=1e-3, merge=True), **TUNE)
    assert all(torch.equal(p, theirs[n]) for n, p in of(pipe, "style").items())
    assert all(torch.equal(dict(pipe.transformer.named_parameters())[n], p) for n, p in base.items())
    end = draw(pipe)
    with lora.without_lora(pipe.transformer):
        assert apart(draw(pipe), before) < 1e-5
    assert apart(sampling.generate(pipe, PROMPTS, steps=2, base_steps=2), before) < 1e-5
    assert apart(end, before) > 1e-3 and torch.equal(draw(pipe), end)
    lora.save_lora(pipe, tmp_path / "tuned")
    again = styled(load(), style)
    lora.load_lora(again, tmp_path / "tuned", "tuned")
    again.set_adapters(["style", "tuned"], [0.5, 1.0])
    assert apart(draw(again), end) < 1e-4


def test_a_lora_loaded_after_add_lora(load, style):
    """diffusers makes it the only active one: refused; with both active only our own trains."""
    pipe = load()
    lora.add_lora(pipe, 2)
    lora.load_lora(pipe, style, "style")
    with pytest.raises(ValueError, match=r"not active, style is: .*set_adapters\(\['style', 'default'\]\)"):
        training.tune(pipe, PROMPTS, brighter, UPDATE, **TUNE)
    pipe.set_adapters(["style", "default"])
    theirs, ours = of(pipe, "style"), of(pipe, "default")
    training.tune(pipe, PROMPTS, brighter, UPDATE, **TUNE)
    assert all(torch.equal(p, theirs[n]) for n, p in of(pipe, "style").items())
    assert not all(torch.equal(p, ours[n]) for n, p in of(pipe, "default").items())


def test_a_disabled_lora_stays_out(load, style):
    pipe = styled(load(), style)
    pipe.disable_lora()
    base = draw(pipe)
    lora.add_lora(pipe, 2)
    assert apart(draw(pipe), base) < 1e-5 and lora.active_adapters(pipe.transformer) == ["default"]
    trained_one = of(pipe, "default")
    training.tune(pipe, PROMPTS, brighter, UPDATE, **TUNE)
    assert not all(torch.equal(p, trained_one[n]) for n, p in of(pipe, "default").items())


def test_merged_holds_every_active_lora(load, style):
    """Of other layers and ranks too."""
    pipe = trained(styled(load(), style, 0.7))
    before, want = {n: p.clone() for n, p in pipe.transformer.named_parameters()}, draw(pipe)
    with lora.merged(pipe.transformer):
        assert apart(draw(pipe), want) < 1e-4
        alone = {n for n, p in pipe.transformer.named_parameters() if not torch.equal(p, before[n])}
    assert any(".to_q." in n for n in alone) and any(".to_k." in n for n in alone)
    assert all(torch.equal(p, before[n]) for n, p in pipe.transformer.named_parameters())


def test_without_lora_changes_nothing_afterwards(load, style):
    """Neither what trains, nor what a user had disabled."""
    pipe = trained(styled(load(), style))
    trains = [p.requires_grad for p in pipe.transformer.parameters()]
    with lora.without_lora(pipe.transformer):
        assert lora.active_adapters(pipe.transformer) == ["style"]
    assert [p.requires_grad for p in pipe.transformer.parameters()] == trains and lora.active_adapters(pipe.transformer) == [
        "style",
        "default",
    ]
    pipe.disable_lora()
    off = draw(pipe)
    assert torch.equal(sampling.generate(pipe, PROMPTS, steps=2, base_steps=1), off) and torch.equal(draw(pipe), off)


def test_a_lora_that_cannot_be_left_out_is_refused(load):
    with pytest.raises(ValueError, match="no LoRA that could be left out"):
        sampling.generate(load(), PROMPTS, steps=2, base_steps=1)
    pipe = trained(load())
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="unfuse_lora"):
        sampling.generate(pipe, PROMPTS, steps=2, base_steps=1)


def test_what_add_lora_cannot_stand_beside_is_named(load, style):
    pipe = load()
    lora.add_lora(pipe, 2)
    with pytest.raises(ValueError, match=r"already has a LoRA called 'default'.*delete_adapters\('default'\)"):
        lora.add_lora(pipe, 2)
    pipe.delete_adapters("default")
    lora.add_lora(pipe, 2)
    pipe = styled(load(), style)
    want = draw(pipe)
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="unload_lora_weights"):
        lora.add_lora(pipe, 2)
    pipe.unload_lora_weights()
    lora.add_lora(pipe, 2)
    assert apart(draw(pipe), want) < 1e-4


def test_add_lora_leaves_torchs_random_numbers_alone(load):
    """And draws what torch.manual_seed(seed) before it drew."""
    pipes = load(), load()
    torch.manual_seed(5)
    expected = torch.rand(3)
    torch.manual_seed(5)
    ours = lora.add_lora(pipes[0], 2, seed=9)
    assert torch.equal(torch.rand(3), expected)
    torch.manual_seed(9)
    pipes[1].transformer.add_adapter(LoraConfig(r=2, lora_alpha=2, init_lora_weights="gaussian", target_modules=lora.LORA_TARGETS))
    assert all(torch.equal(p, q) for p, q in zip(ours, of(pipes[1], "default").values(), strict=True))


def test_a_bfloat16_pipeline_beside_a_lora(sd3_folder, style):
    """Only our own parameters are float32."""
    pipe = styled(pipelines.load_pipeline(str(sd3_folder), torch.bfloat16), style)
    parameters = lora.add_lora(pipe, 2)
    others = [p.dtype for n, p in pipe.transformer.named_parameters() if ".default." not in n]
    assert {p.dtype for p in parameters} == {torch.float32} and set(others) == {torch.bfloat16}


# ---- pipelines without T5 --------------------------------------------------------------------------------------------------


def test_an_ordinary_call_draws_the_ordinary_picture(sd3_folder, load):
    """Of any number of empty tokens, anew and as an edit, with guidance; the fold is what max_sequence_length=1 asks for."""
    from diffusers import StableDiffusion3Img2ImgPipeline

    plain = StableDiffusion3Pipeline.from_pretrained(sd3_folder, text_encoder_3=None, tokenizer_3=None)
    noise = lambda: [torch.Generator().manual_seed(k) for k in range(2)]
    call = lambda pipe, **o: pipe(PROMPTS, num_inference_steps=4, generator=noise(), output_type="pt", **o).images
    want = call(plain, guidance_scale=3.0)
    assert apart(call(load(), guidance_scale=3.0), want) < 1e-4
    assert apart(call(load(), guidance_scale=3.0, max_sequence_length=pipelines.t5_length(load())), want) < 1e-4
    few = call(plain, guidance_scale=0.0, max_sequence_length=7)
    assert apart(call(load(), guidance_scale=0.0, max_sequence_length=7), few) < 1e-4 < apart(few, call(plain, guidance_scale=0.0))
    edit = lambda pipe: call(StableDiffusion3Img2ImgPipeline(**pipe.components), image=want, strength=0.5, guidance_scale=0.0)
    assert apart(edit(load()), edit(plain)) < 1e-4


def test_the_folds_work_is_what_it_was(load):
    """One token behind the towers' instead of 256."""
    seen, pipe = [], load()
    pipe.transformer.register_forward_pre_hook(
        lambda _, args, kwargs: seen.append(kwargs["encoder_hidden_states"].shape[1]), with_kwargs=True
    )
    draw(pipe)
    assert set(seen) == {pipe.tokenizer_max_length + 1} and sampling.encode(pipe, PROMPTS)[0].shape[1] == pipe.tokenizer_max_length + 1


@pytest.mark.parametrize("name", ["ip_hidden_states", "temb", "attention_mask"])
def test_what_the_folded_attention_cannot_do_is_refused(load, name):
    pipe = load()
    embeds, pooled = sampling.encode(pipe, PROMPTS)
    run = lambda **options: pipe.transformer(torch.ones(2, 4, 8, 8), embeds, pooled, torch.ones(2), joint_attention_kwargs=options)
    run(scale=1.0)
    with pytest.raises(ValueError, match=f"takes no {name}"):
        run(**{name: torch.ones(2, 1, 32)})
    attention = pipe.transformer.transformer_blocks[0].attn
    with pytest.raises(ValueError, match="takes no mask"):
        attention.processor(attention, torch.ones(1, 4, 32), torch.ones(1, 4, 32), mask=torch.ones(1))


def test_loading_speaks_of_no_text_encoder(load, tmp_path, monkeypatch):
    """As load_lora_weights does, to the last bit, without its warning for each text encoder that the LoRA does not touch."""
    lora.save_lora(trained(load()), tmp_path)
    said = []
    for module in ("lora_base", "peft"):
        monkeypatch.setattr(getattr(diffusers.loaders, module).logger, "warning", lambda text, *rest: said.append(text))
    again, usual = load(), load()
    lora.load_lora(again, tmp_path)
    assert said == []
    usual.load_lora_weights(str(tmp_path))
    assert len(said) == 2 and torch.equal(draw(again), draw(usual))
