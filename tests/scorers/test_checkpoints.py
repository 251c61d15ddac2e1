"""Weights in exactly their publishers' layouts, small and random: what the scorers make of them is what the publisher's own class
or a plain formula makes."""

import json
import shutil

import open_clip
import pytest
import torch
import torch.nn.functional as F
from safetensors.torch import save_file
from transformers import CLIPConfig, CLIPModel

from conftest import ROOT
from icthp import preprocessing
from icthp.scorers import aesthetic, configs, loading
from icthp.scorers.clip import ClipScorer
from icthp.scorers.hp import HpScorer, make_head

PROMPTS = ["a red circle", "two blue stars above a green heart", "a red circle"]


@pytest.fixture(scope="module")
def images():
    return torch.rand(3, 3, 40, 52, generator=torch.Generator().manual_seed(0))


@pytest.fixture(scope="module", params=["gelu", "quick_gelu"])
def clip_model(request):
    """transformers' CLIPModel, of random weights, that reads CLIP's own 49,408 tokens."""
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 80, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": request.param}
    config = CLIPConfig(vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=24,
                        text_config=tower | {"vocab_size": 49408, "max_position_embeddings": 24, "eos_token_id": 49407})  # fmt: skip
    model = CLIPModel(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    model.logit_scale.data.fill_(3.0)
    return model


def publishers(model, images, scaled=False):
    """The cosine as transformers computes it from its own embeddings."""
    ids = open_clip.SimpleTokenizer(context_length=24)(PROMPTS)
    mean, std = (torch.tensor(v)[:, None, None] for v in (open_clip.OPENAI_DATASET_MEAN, open_clip.OPENAI_DATASET_STD))
    with torch.no_grad():
        out = model(input_ids=ids, pixel_values=(preprocessing.resize_center_crop(images, 32) - mean) / std)
    return (out.image_embeds * out.text_embeds).sum(-1) * (model.logit_scale.exp() if scaled else 1)


@pytest.mark.parametrize("safe", [True, False])
def test_pickscores_layout(clip_model, images, tmp_path, safe):
    """A CLIPModel folder: config.json beside model.safetensors or pytorch_model.bin."""
    clip_model.save_pretrained(tmp_path)
    if not safe:
        (tmp_path / "model.safetensors").unlink()
        old = clip_model.state_dict() | {"text_model.embeddings.position_ids": torch.arange(24)[None]}  # of older versions
        torch.save(old, tmp_path / "pytorch_model.bin")
    scorer = loading.load("pickscore", f"local-dir:{tmp_path}")
    torch.testing.assert_close(scorer.score(images, PROMPTS), publishers(clip_model, images, scaled=True), rtol=1e-4, atol=1e-4)
    pixels = images.clone().requires_grad_(True)
    scorer.score(pixels, PROMPTS).sum().backward()
    assert pixels.grad.isfinite().all() and pixels.grad.abs().max() > 0


def test_the_released_ict_and_hp(clip_model, images, tmp_path):
    """8y/ICT is one .bin; 8y/HP is a .bin of the whole CLIP and one of the head, which reads the embedding as it is."""
    for folder in ("ICT", "HP/hp_backbone", "HP/hp_scorer"):
        (tmp_path / folder).mkdir(parents=True)
    for folder in ("ICT", "HP/hp_backbone"):
        torch.save(clip_model.state_dict(), tmp_path / folder / "pytorch_model.bin")
        clip_model.config.save_pretrained(tmp_path / folder)
    released = make_head(24, "released")
    for p in released.parameters():
        torch.nn.init.normal_(p, std=0.3)
    torch.save({f"layers.{k}": v for k, v in released.state_dict().items()}, tmp_path / "HP/hp_scorer/mlp_pytorch_model.bin")
    ict, hp = loading.load("ict", f"local-dir:{tmp_path}/ICT"), loading.load("hp", str(tmp_path / "HP"))
    torch.testing.assert_close(ict.score(images, PROMPTS), publishers(clip_model, images), rtol=1e-4, atol=1e-5)
    with torch.no_grad():
        embedding = clip_model.get_image_features(pixel_values=hp.clip.preprocess(images)).pooler_output
        expected = released.eval()(embedding).sigmoid()[:, 0]
    torch.testing.assert_close(hp.score(images), expected, rtol=1e-4, atol=1e-5)
    both = loading.load("icthp", f"{tmp_path}/ICT,{tmp_path}/HP").score(images, PROMPTS)
    torch.testing.assert_close(both, ict.score(images, PROMPTS) * expected, rtol=1e-4, atol=1e-5)


def test_weights_without_a_config_are_vit_h(tmp_path):
    torch.save({"logit_scale": torch.ones([])}, tmp_path / "pytorch_model.bin")
    assert configs.model_config(f"local-dir:{tmp_path}") == open_clip.get_model_config("ViT-H-14")


def test_hps_v2s_layout(clip_folder, images, tmp_path):
    """One .pt of an open_clip architecture: the state under "state_dict", with DDP's prefix, beside other things."""
    config, clip = configs.model_config(clip_folder), loading.load("clip", f"local-dir:{clip_folder}")
    (tmp_path / "tiny-hps.json").write_text(json.dumps(config | {"text_cfg": config["text_cfg"] | {"hf_tokenizer_name": str(clip_folder)}}))
    open_clip.add_model_config(tmp_path)
    state = {f"module.{k}": v for k, v in clip.model.state_dict().items()}
    torch.save({"epoch": 1, "name": "hps", "state_dict": state}, tmp_path / "HPS_v2.pt")
    scorer = loading.load("hpsv2", f"tiny-hps/{tmp_path}/HPS_v2.pt")
    visual = scorer.model.visual
    visual.image_mean = visual.image_std = (0.5, 0.5, 0.5)  # the small CLIP's own; the file does not say
    square = images[..., :40] / 4 + 0.4  # so that nothing overshoots, which a tensor's resizing leaves and Pillow's cuts
    torch.testing.assert_close(scorer.score(square, PROMPTS), clip.score(square, PROMPTS), rtol=1e-4, atol=1e-5)
    assert (scorer.score(images, PROMPTS) - clip.score(images, PROMPTS)).abs().max() > 1e-3  # a border, not a cut


def test_the_hubs_cache_is_read_offline(clip_model, images, tmp_path, monkeypatch):
    """hf-hub:org/name as huggingface_hub lays it out; the layout inside is transformers'."""
    home = tmp_path / "models--org--name"
    clip_model.save_pretrained(home / "snapshots/abc")
    (home / "refs").mkdir()
    (home / "refs/main").write_text("abc")
    import huggingface_hub.constants as hub_constants

    monkeypatch.setattr(hub_constants, "HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr(hub_constants, "HF_HUB_OFFLINE", True)
    scorer = loading.load("ict", "hf-hub:org/name")
    torch.testing.assert_close(scorer.score(images, PROMPTS), publishers(clip_model, images), rtol=1e-4, atol=1e-5)


def test_keys_that_do_not_fit_are_named(clip_model, tmp_path):
    clip_model.save_pretrained(tmp_path)
    (tmp_path / "model.safetensors").unlink()
    state = clip_model.state_dict()
    state["extra"] = state.pop("visual_projection.weight")
    state["logit_scale"] = torch.ones(2)
    torch.save(state, tmp_path / "pytorch_model.bin")
    says = r"lacks visual.proj; it has an unknown extra; it has another shape for logit_scale \(2,\)"
    with pytest.raises(ValueError, match=f"pytorch_model.bin does not fit this CLIP: it {says}"):
        loading.load("clip", f"local-dir:{tmp_path}")


def test_a_file_that_holds_code_is_not_run(clip_model, tmp_path):
    class Hostile:
        def __reduce__(self):
            return print, ("run",)

    clip_model.config.save_pretrained(tmp_path)
    torch.save({"logit_scale": Hostile()}, tmp_path / "pytorch_model.bin")
    with pytest.raises(Exception, match="[Ww]eights.only"):
        loading.load("clip", f"local-dir:{tmp_path}")


LAION = ROOT.parent / "shared/data/weights"


@pytest.mark.skipif(not LAION.exists(), reason="needs LAION's heads")
@pytest.mark.parametrize("name", ["sa_0_4_vit_b_32_linear", "sa_0_4_vit_l_14_linear", "sac+logos+ava1-l14-linearMSE"])
def test_laions_own_heads(name):
    state = torch.load(LAION / f"{name}.pth", map_location="cpu", weights_only=True)
    x = expected = F.normalize(torch.randn(5, 512 if "b_32" in name else 768, generator=torch.Generator().manual_seed(0)), dim=1)
    for key in [key for key in state if key.endswith("weight")]:  # one linear layer, or five without a non-linearity
        expected = expected @ state[key].float().T + state[key.replace("weight", "bias")].float()
    torch.testing.assert_close(aesthetic.aesthetic_head(LAION / f"{name}.pth")(x), expected, rtol=1e-4, atol=1e-4)
    assert 0 < expected.mean() < 10


# ---- nothing that comes with weights is run or trusted ---------------------------------------------------------------


def hostile_folder(clip_folder, folder, trace, **text):
    """An open_clip folder whose tokenizer is Python of its own, which would leave a file behind."""
    shutil.copytree(clip_folder, folder)
    (folder / "evil.py").write_text(
        f"open({str(trace)!r}, 'w').close()\nfrom transformers import CLIPTokenizer as Evil\n", encoding="utf-8"
    )
    tokenizer = {"auto_map": {"AutoTokenizer": ["evil.Evil", None]}, "tokenizer_class": "Evil"}
    (folder / "tokenizer_config.json").write_text(json.dumps(tokenizer), encoding="utf-8")
    (folder / "config.json").write_text(json.dumps({"model_type": "evil", "auto_map": {"AutoConfig": "evil.Evil"}}), encoding="utf-8")
    return change_config(folder, text_cfg=text)


def change_config(folder, **parts):
    file = folder / "open_clip_config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    for part, fields in parts.items():
        config["model_cfg"][part] |= fields
    file.write_text(json.dumps(config), encoding="utf-8")
    return folder


TRUST = {"tokenizer_kwargs": {"trust_remote_code": True}}


@pytest.mark.parametrize(
    ("text", "says"),
    [
        (TRUST, r"open_clip_config.json: `text_cfg.tokenizer_kwargs` is \{'trust_remote_code': True\}"),
        ({"tokenizer_kwargs": {"clean": {"a": 1}}}, "`text_cfg.tokenizer_kwargs`"),
        ({"tokenizer_kwargs": "x"}, "`text_cfg.tokenizer_kwargs`"),
        ({}, "tokenizer_config.json: `auto_map` asks for Python"),
    ],
)
def test_a_folders_python_is_never_run(clip_folder, tmp_path, monkeypatch, text, says):
    """Neither of a local folder nor of the Hub's snapshot, whatever the config asks for."""
    trace = tmp_path / "it_ran"
    folder = hostile_folder(clip_folder, tmp_path / "models--evil--ict/snapshots/abc", trace, **text)
    monkeypatch.setattr("builtins.input", lambda *_: "y")  # somebody who says yes when transformers asks
    (tmp_path / "models--evil--ict/refs").mkdir()
    (tmp_path / "models--evil--ict/refs/main").write_text("abc", encoding="utf-8")
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_CACHE", str(tmp_path))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    for source in (f"local-dir:{folder}", "hf-hub:evil/ict"):
        with pytest.raises(ValueError, match=f"models--evil--ict.*{says}"):
            loading.load("ict", source)
    assert not trace.exists()


@pytest.mark.parametrize(
    ("parts", "says"),
    [
        ({"text_cfg": {"hf_model_name": "org/tower"}}, "`text_cfg.hf_model_name` is 'org/tower'"),
        ({"vision_cfg": {"timm_model_name": "hf-hub:org/tower"}}, "`vision_cfg.timm_model_name` is 'hf-hub:org/tower'"),
        ({"vision_cfg": {"no_such_field": 1}}, "describes no model that open_clip builds"),
    ],
)
def test_a_local_folder_does_not_reach_the_hub(clip_folder, tmp_path, monkeypatch, parts, says):
    shutil.copytree(clip_folder, tmp_path / "clip")
    monkeypatch.setattr("socket.getaddrinfo", lambda *a, **k: pytest.fail("it reached for the network"))
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", False)
    with pytest.raises(ValueError, match=f"open_clip_config.json.*{says}"):
        loading.load("clip", f"local-dir:{change_config(tmp_path / 'clip', **parts)}")


def test_harmless_tokenizer_options_are_followed(clip_folder, tmp_path):
    shutil.copytree(clip_folder, tmp_path / "clip")
    change_config(tmp_path / "clip", text_cfg={"tokenizer_kwargs": {"clean": "canonicalize"}})
    tokenizer = loading.load("clip", f"local-dir:{tmp_path}/clip").tokenizer
    assert torch.equal(tokenizer(["A red, circle!"]), tokenizer(["a red circle"]))


# ---- layouts ----------------------------------------------------------------------------------------------------------


def put(state, folder, layout):
    """`state` in one of the layouts in use."""
    prefixed = lambda prefix: {prefix + k: v for k, v in state.items()}
    if layout == "shards":
        names = sorted(state)
        parts = {"model-00001-of-00002.safetensors": names[::2], "model-00002-of-00002.safetensors": names[1::2]}
        for file, keys in parts.items():
            save_file({k: state[k] for k in keys}, folder / file)
        index = {"metadata": {}, "weight_map": {k: file for file, keys in parts.items() for k in keys}}
        (folder / "model.safetensors.index.json").write_text(json.dumps(index), encoding="utf-8")
    elif layout.endswith(".safetensors"):
        save_file(prefixed("module.") if "ddp" in layout else state, folder / layout.removeprefix("ddp-"))
    else:
        torch.save(prefixed("_orig_mod.module.") if layout == "both" else {"state_dict": state, "epoch": 1}, folder / "pytorch_model.bin")


@pytest.mark.parametrize("layout", ["shards", "model.fp16.safetensors", "ddp-model.safetensors", "both", "nested"])
def test_layouts_of_the_same_weights(clip_model, images, tmp_path, layout):
    clip_model.config.save_pretrained(tmp_path)
    put({k: v.contiguous().clone() for k, v in clip_model.state_dict().items()}, tmp_path, layout)
    scorer = loading.load("clip", f"local-dir:{tmp_path}")
    torch.testing.assert_close(scorer.score(images, PROMPTS), publishers(clip_model, images), rtol=1e-4, atol=1e-5)


def test_an_hp_config_of_other_fields_is_named(clip_folder, tmp_path):
    hp = HpScorer(loading.load("clip", f"local-dir:{clip_folder}"), make_head(16), {"width": 16}).eval()
    hp.save_pretrained(tmp_path)
    assert not HpScorer.from_pretrained(str(tmp_path)).training
    for config, says in (({"width": 16, "depth": 3}, "has an unknown depth"), ({"variant": "paper"}, "lacks `width`")):
        (tmp_path / "config.json").write_text(json.dumps(config), encoding="utf-8")
        with pytest.raises(ValueError, match=f"config.json {says}"):
            loading.load("hp", str(tmp_path))
    with pytest.raises(TypeError, match="no keyword colour"):
        ClipScorer.from_pretrained(str(clip_folder), colour="red")
