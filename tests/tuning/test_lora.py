"""What is saved comes back, equal in pictures; what would not draw is refused."""

from functools import partial

import diffusers
import pytest
import torch
from peft import LoraConfig
from safetensors.torch import load_file, save_file

from icthp import pipelines
from icthp.tuning import draft, lora, sampling, training

PROMPTS = ["a red circle", "two blue squares"]

FILE = "pytorch_lora_weights.safetensors"


def draw(pipe):
    return sampling.generate(pipe, PROMPTS, steps=2)


def apart(a, b):
    return (a - b).abs().max().item()


def trained(pipe, seed=1, std=0.2, **options):
    """With a LoRA that does something."""
    for p in lora.add_lora(pipe, **{"rank": 2} | options):
        torch.nn.init.normal_(p, std=std, generator=torch.Generator().manual_seed(seed))
    return pipe


@pytest.mark.parametrize("options", [{"rank": 4, "alpha": 16.0}, {"rank": 4, "alpha": 1}, {"rank": 3, "targets": ["to_q", "to_out.0"]}])
def test_alpha_rank_and_targets_come_back(load_pipe, tmp_path, options):
    pipe = trained(load_pipe(), **options)
    lora.save_lora(pipe, tmp_path)
    again, blind = load_pipe(), load_pipe()
    again.load_lora_weights(str(tmp_path))
    blind.load_lora_weights(load_file(tmp_path / FILE))  # a reader that sees no more than the tensors
    want = draw(pipe)
    assert apart(want, draw(load_pipe())) > 0.005 and apart(draw(again), want) < 1e-4 and apart(draw(blind), want) < 1e-4


def test_ranks_and_alphas_of_single_layers_come_back(load_pipe, tmp_path):
    pipe = load_pipe()
    pipe.transformer.add_adapter(LoraConfig(r=2, lora_alpha=3, target_modules=["to_q", "to_k", "to_v"], rank_pattern={"to_q": 4},
                                            alpha_pattern={"to_k": 7}, use_rslora=True), lora.ADAPTER)  # fmt: skip
    for p in lora.train_adapter(pipe.transformer):
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(1))
    lora.save_lora(pipe, tmp_path)
    again = load_pipe()
    lora.load_lora(again, tmp_path)
    assert apart(draw(pipe), draw(load_pipe())) > 0.005 and apart(draw(again), draw(pipe)) < 1e-4


def test_the_strength_is_saved_too(load_pipe, tmp_path):
    pipe, again = trained(load_pipe()), load_pipe()
    pipe.set_adapters([lora.ADAPTER], [0.5])
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
def test_a_wrapped_transformer_is_saved_under_plain_names(load_pipe, tmp_path, wrap):
    pipe = trained(load_pipe(), alpha=6)
    lora.save_lora(pipe, tmp_path / "plain")
    wrap(pipe)
    lora.save_lora(pipe, tmp_path / "wrapped")
    one, two = (load_file(tmp_path / name / FILE) for name in ("plain", "wrapped"))
    assert one.keys() == two.keys() and all(torch.equal(one[name], two[name]) for name in one)


def test_a_compiled_transformer_tunes_and_takes_a_lora(load_pipe, tmp_path):
    pipe, reward = load_pipe(), lambda pixels, prompts: pixels[:, 0].mean((1, 2))
    compiled(pipe)
    lora.add_lora(pipe, 2)
    training.tune(pipe, PROMPTS, reward, partial(draft.draft_step, steps=2), batch=2, steps=2, lr=1e-2, checkpoint=tmp_path / "c.pt")
    assert not any("_orig_mod" in name for name in torch.load(tmp_path / "c.pt", weights_only=True)["model"])
    lora.save_lora(pipe, tmp_path)
    again = load_pipe()
    lora.load_lora(again, tmp_path)
    assert apart(draw(again), draw(pipe)) < 1e-4


def test_without_a_lora_nothing_is_saved(load_pipe, tmp_path):
    with pytest.raises(ValueError, match="no LoRA of add_lora"):
        lora.save_lora(load_pipe(), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def damaged(state, damage):
    first, *others = sorted(state)
    return {
        "NaN": state | {first: state[first] * torch.nan},
        "infinite": state | {first: state[first].index_fill(0, torch.tensor([0]), torch.inf)},
        "another prefix": {name.replace("transformer.", "unet.", 1): value for name, value in state.items()},
        "another model": {name.replace("transformer_blocks.1", "transformer_blocks.9"): value for name, value in state.items()},
        "half": {name: value for name, value in state.items() if name != first},
        "empty": {},
        "another width": {name: value[:, :8].contiguous() if "lora_A" in name else value for name, value in state.items()},
    }[damage]


MESSAGES = {"NaN": "is not finite", "infinite": "is not finite", "another prefix": r"30 of its 30 weights .* names such as transformer\.",
            "another model": r"fit no layer of this pipeline, transformer\.transformer_blocks\.9",
            "half": r"has no .*lora_A\.weight beside it",
            "empty": "it is empty", "another width": "the LoRA of another model"}  # fmt: skip


@pytest.mark.parametrize("damage", MESSAGES)
def test_a_lora_that_would_not_draw_is_refused(load_pipe, tmp_path, damage):
    """And the pipeline draws and lists what it did."""
    lora.save_lora(trained(load_pipe()), tmp_path)
    save_file(damaged(load_file(tmp_path / FILE), damage), tmp_path / FILE)
    pipe = load_pipe()
    before = draw(pipe)
    with pytest.raises(ValueError, match=MESSAGES[damage]):
        lora.load_lora(pipe, tmp_path)
    assert not any(pipe.get_list_adapters().values()) and torch.equal(draw(pipe), before)


def test_a_lora_file_that_is_cut_or_not_there_is_named(load_pipe, tmp_path):
    with pytest.raises(FileNotFoundError, match=f"{tmp_path} has no {FILE}"):
        lora.load_lora(load_pipe(), tmp_path)
    lora.save_lora(trained(load_pipe()), tmp_path)
    with open(tmp_path / FILE, "r+b") as file:
        file.truncate(1000)
    with pytest.raises(ValueError, match=f"{tmp_path}: its LoRA cannot be read"):
        lora.load_lora(load_pipe(), tmp_path)


def test_a_pipeline_with_a_lora_inside_is_not_written(load_pipe, tmp_path):
    """Fused, as the refusal says, its folder draws the tuned pictures."""
    pipe = trained(load_pipe(), std=0.3)
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
    assert apart(want, draw(load_pipe())) > 0.02 and apart(draw(pipelines.load_pipeline(str(tmp_path / "whole"))), want) < 1e-3  # float16


def test_loading_speaks_of_no_text_encoder(load_pipe, tmp_path, monkeypatch):
    """As load_lora_weights does, to the last bit, without its warning for each text encoder that the LoRA does not touch."""
    lora.save_lora(trained(load_pipe()), tmp_path)
    warned = []
    for module in ("lora_base", "peft"):
        monkeypatch.setattr(getattr(diffusers.loaders, module).logger, "warning", lambda text, *rest: warned.append(text))
    again, usual = load_pipe(), load_pipe()
    lora.load_lora(again, tmp_path)
    assert warned == []
    usual.load_lora_weights(str(tmp_path))
    assert len(warned) == 2 and torch.equal(draw(again), draw(usual))
