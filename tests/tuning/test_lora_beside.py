"""A tuning beside other LoRAs: they stay active and frozen, and what is saved is the tuning alone."""

from functools import partial

import pytest
import torch
from peft import LoraConfig
from test_lora import PROMPTS, apart, draw, trained

from icthp import pipelines
from icthp.tuning import draft, lora, training


@pytest.fixture
def style(load_pipe, tmp_path):
    """The folder of a LoRA of another rank and other layers than `trained`'s."""
    lora.save_lora(trained(load_pipe(), seed=2, rank=3, targets=["to_q", "to_v"]), tmp_path / "style")
    return tmp_path / "style"


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


def test_tuning_beside_a_loaded_lora(load_pipe, style, tmp_path):
    """It stays active, at its strength, and frozen; what is saved is the tuning alone; "untuned" is the base with the loaded one."""
    pipe = styled(load_pipe(), style, 0.5)
    before = draw(pipe)
    parameters = lora.add_lora(pipe, 2)
    assert apart(before, draw(load_pipe())) > 1e-3 and apart(draw(pipe), before) < 1e-5
    assert {id(p) for p in pipe.transformer.parameters() if p.requires_grad} == {id(p) for p in parameters}
    style_weights = of(pipe, "style")
    base = {n: p.clone() for n, p in pipe.transformer.named_parameters() if "lora_" not in n}
    pipe.set_adapters(["style", lora.ADAPTER], [0.5, 1.0])  # after which both would train
    training.tune(pipe, PROMPTS, brighter, partial(draft.draft_step, steps=2, anchor=1e-3, merge=True), **TUNE)
    assert all(torch.equal(p, style_weights[n]) for n, p in of(pipe, "style").items())
    assert all(torch.equal(dict(pipe.transformer.named_parameters())[n], p) for n, p in base.items())
    end = draw(pipe)
    with lora.without_lora(pipe.transformer):
        assert apart(draw(pipe), before) < 1e-5
    assert apart(end, before) > 1e-3 and torch.equal(draw(pipe), end)
    lora.save_lora(pipe, tmp_path / "tuned")
    again = styled(load_pipe(), style)
    lora.load_lora(again, tmp_path / "tuned", "tuned")
    again.set_adapters(["style", "tuned"], [0.5, 1.0])
    assert apart(draw(again), end) < 1e-4


def test_a_lora_loaded_after_add_lora(load_pipe, style):
    """diffusers makes it the only active one: refused; with both active only our own trains."""
    pipe = load_pipe()
    lora.add_lora(pipe, 2)
    lora.load_lora(pipe, style, "style")
    with pytest.raises(ValueError, match=r"not active, style is: .*set_adapters\(\['style', 'default'\]\)"):
        training.tune(pipe, PROMPTS, brighter, UPDATE, **TUNE)
    pipe.set_adapters(["style", "default"])
    style_weights = of(pipe, "style")
    own_weights = of(pipe, "default")
    training.tune(pipe, PROMPTS, brighter, UPDATE, **TUNE)
    assert all(torch.equal(p, style_weights[n]) for n, p in of(pipe, "style").items())
    assert not all(torch.equal(p, own_weights[n]) for n, p in of(pipe, "default").items())


def test_a_disabled_lora_stays_out(load_pipe, style):
    pipe = styled(load_pipe(), style)
    pipe.disable_lora()
    base = draw(pipe)
    lora.add_lora(pipe, 2)
    assert apart(draw(pipe), base) < 1e-5 and lora.active_adapters(pipe.transformer) == ["default"]
    trained_one = of(pipe, "default")
    training.tune(pipe, PROMPTS, brighter, UPDATE, **TUNE)
    assert not all(torch.equal(p, trained_one[n]) for n, p in of(pipe, "default").items())


def test_merged_holds_every_active_lora(load_pipe, style):
    """Of other layers and ranks too."""
    pipe = trained(styled(load_pipe(), style, 0.7))
    before, want = {n: p.clone() for n, p in pipe.transformer.named_parameters()}, draw(pipe)
    with lora.merged(pipe.transformer):
        assert apart(draw(pipe), want) < 1e-4
        alone = {n for n, p in pipe.transformer.named_parameters() if not torch.equal(p, before[n])}
    assert any(".to_q." in n for n in alone) and any(".to_k." in n for n in alone)
    assert all(torch.equal(p, before[n]) for n, p in pipe.transformer.named_parameters())


def test_without_lora_changes_nothing_afterwards(load_pipe, style):
    """Neither what trains, nor what a user had disabled; a failure inside too."""
    pipe = trained(styled(load_pipe(), style))
    trains = [p.requires_grad for p in pipe.transformer.parameters()]
    with lora.without_lora(pipe.transformer):
        assert lora.active_adapters(pipe.transformer) == ["style"]
    assert [p.requires_grad for p in pipe.transformer.parameters()] == trains
    assert lora.active_adapters(pipe.transformer) == ["style", "default"]
    before = draw(pipe)
    with pytest.raises(KeyboardInterrupt), lora.without_lora(pipe.transformer):
        raise KeyboardInterrupt
    assert torch.equal(draw(pipe), before)
    pipe.disable_lora()
    disabled = draw(pipe)
    with lora.without_lora(pipe.transformer):
        assert torch.equal(draw(pipe), disabled)
    assert torch.equal(draw(pipe), disabled)


def test_a_lora_that_cannot_be_left_out_is_refused(load_pipe):
    with pytest.raises(ValueError, match="no LoRA that could be left out"), lora.without_lora(load_pipe().transformer):
        pass
    pipe = trained(load_pipe())
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="unfuse_lora"), lora.without_lora(pipe.transformer):
        pass


def test_what_add_lora_cannot_stand_beside_is_named(load_pipe, style):
    pipe = load_pipe()
    lora.add_lora(pipe, 2)
    with pytest.raises(ValueError, match=r"already has a LoRA called 'default'.*delete_adapters\('default'\)"):
        lora.add_lora(pipe, 2)
    pipe.delete_adapters("default")
    lora.add_lora(pipe, 2)
    pipe = styled(load_pipe(), style)
    want = draw(pipe)
    pipe.fuse_lora()
    with pytest.raises(ValueError, match="unload_lora_weights"):
        lora.add_lora(pipe, 2)
    pipe.unload_lora_weights()
    lora.add_lora(pipe, 2)
    assert apart(draw(pipe), want) < 1e-4


def test_add_lora_leaves_torchs_random_numbers_alone(load_pipe):
    """And draws what torch.manual_seed(seed) before it drew."""
    pipes = load_pipe(), load_pipe()
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
