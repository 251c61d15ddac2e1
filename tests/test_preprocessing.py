"""A model's own preprocessing, whole: ours is the library's own transform, or a sentence that names what is not done."""

import io
import json
import shutil

import numpy as np
import open_clip
import pytest
import torch
import torchvision.transforms.functional as TF
from open_clip.transform import PreprocessCfg, image_transform_v2
from PIL import Image
from transformers import CLIPConfig, CLIPImageProcessor, CLIPModel

from icthp import images, kernels, preprocessing
from icthp.data.triplets import Triplets, write_triplets
from icthp.scorers import combined, configs, loading
from icthp.scorers.hp import HpScorer, make_head

SHAPES = [(90, 160), (160, 90), (20, 200), (200, 20), (33, 47), (64, 64), (100, 101), (641, 360), (480, 80)]  # (height, width)
NEAR = 2 / 255 + 1e-6


def noise_image(shape, seed=0):
    """Noise, whose edges overshoot, as a PIL image."""
    return Image.fromarray(np.random.default_rng(seed).integers(0, 256, (*shape, 3), dtype=np.uint8))


def stated(**fields):
    return {"size": 64, "mean": (0.0, 0.0, 0.0), "std": (1.0, 1.0, 1.0)} | fields


def largest_difference(config: dict, shape) -> float:
    """From open_clip's own transform, of bytes and of floats, for pixels in [0, 1]."""
    own = preprocessing.from_open_clip(config, "it")
    image = noise_image(shape)
    expected = image_transform_v2(PreprocessCfg(**config), is_train=False)(image)
    pixels = images.read(image)[None]
    results = (
        kernels.preprocess(pixels, own),
        kernels.preprocess(pixels.float() / 255, own),
        preprocessing.resize_center_crop(pixels.float() / 255, own),
    )
    return max((result[0] - expected).abs().max().item() for result in results)


@pytest.mark.parametrize("interpolation", ["bicubic", "bilinear"])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
@pytest.mark.parametrize("size", [64, (48, 80), (80, 48)])
def test_it_is_open_clips_transform(mode, interpolation, size):
    """Every aspect, larger and smaller than the tower, on a border of grey."""
    config = stated(size=size, resize_mode=mode, interpolation=interpolation, fill_color=77)
    assert max(largest_difference(config, shape) for shape in SHAPES) <= NEAR


def test_every_pretrained_tag_is_matched_or_refused():
    """All that open_clip can download, by the config that each tag states; equal configs are tried once."""
    matched, refused, worst = 0, [], {}
    for name, tag in open_clip.list_pretrained():
        tag_config = open_clip.get_pretrained_cfg(name, tag)
        fields = ("mean", "std", "interpolation", "resize_mode", "fill_color", "mode")
        config = {k: tag_config[k] for k in fields if tag_config.get(k) is not None}
        config["size"] = open_clip.get_model_config(name)["vision_cfg"]["image_size"]
        try:
            own = preprocessing.from_open_clip(config, f"{name}/{tag}")
        except ValueError as error:
            refused.append(str(error))
            continue
        matched += 1
        assert own.mean == tuple(config.get("mean", own.mean)) and own.std == tuple(config.get("std", own.std))
        plain = {k: v for k, v in config.items() if k not in ("mean", "std")} | {"mean": (0.0,) * 3, "std": (1.0,) * 3}
        if str(plain) not in worst:
            worst[str(plain)] = max(largest_difference(plain, shape) for shape in ((180, 320), (320, 180)))
    print(f"{matched} tags matched, {len(refused)} refused, {len(worst)} geometries, at most {max(worst.values()) * 255:.2f} of 255 apart")
    assert matched + len(refused) == len(open_clip.list_pretrained()) and matched == 196 and not refused
    assert max(worst.values()) <= NEAR


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"resize_mode": "stretch"}, "`resize_mode` is 'stretch'"),
        ({"interpolation": "random"}, "`interpolation` is 'random'"),
        ({"interpolation": "nearest"}, "`interpolation` is 'nearest'"),
        ({"mode": "L"}, "`mode` is 'L'"),
        ({"fill_color": [1, 2, 3]}, "`fill_color`"),
        ({"fill_color": 256}, "`fill_color`"),
        ({"mean": [0.5, 0.5]}, "`mean`"),
        ({"std": [0.5, 0, 0.5]}, "`std`"),
        ({"size": 0}, "`size` is 0"),
        ({"size": [1, 2, 3]}, "`size`"),
    ],
)
def test_what_is_not_done_is_refused_by_field_and_source(wrong, says):
    with pytest.raises(ValueError, match=f"a/folder: {says}"):
        preprocessing.from_open_clip(stated(**wrong), "a/folder")


PROCESSORS = [
    {},
    {"crop_size": 64, "size": 64},
    {"size": {"shortest_edge": 80}},
    {"size": {"shortest_edge": 48}},  # smaller than the crop: padded with black
    {"size": {"height": 70, "width": 90}},
    {"size": {"height": 64, "width": 64}, "do_center_crop": False},
    {"do_resize": False},
    {"resample": 2},
    {"do_rescale": False, "image_mean": [120.0] * 3, "image_std": [60.0, 61.0, 62.0]},
    {"do_normalize": False},
    {"rescale_factor": 1 / 127.5, "image_mean": [1.0] * 3, "image_std": [1.0] * 3},
]


@pytest.mark.parametrize("fields", PROCESSORS, ids=str)
def test_it_is_transformers_image_processor(fields):
    config = {"size": {"shortest_edge": 64}, "crop_size": {"height": 64, "width": 64}} | fields
    processor = CLIPImageProcessor(**config)
    own = preprocessing.from_transformers(config, 64, "it")
    for shape in SHAPES:
        image = noise_image(shape)
        expected = processor(image, return_tensors="pt").pixel_values
        std = torch.tensor(own.std)[:, None, None]
        for pixels in (images.read(image)[None], images.to_pixels(image)[None]):
            assert ((kernels.preprocess(pixels, own) - expected) * std).abs().max() <= NEAR, shape


@pytest.mark.parametrize(
    ("wrong", "says"),
    [
        ({"do_center_crop": False}, "`do_center_crop` is false"),
        ({"resample": 0}, "`resample` is 0"),
        ({"resample": 1}, "`resample` is 1"),
        ({"size": {"longest_edge": 64}}, "`size`"),
        ({"size": {"shortest_edge": 64, "longest_edge": 128}}, "`size`"),
        ({"crop_size": 32}, "`crop_size` makes images of"),
        ({"do_pad": True}, "`do_pad`"),
        ({"do_flip_channel_order": True}, "`do_flip_channel_order`"),
        ({"image_processor_type": "SiglipImageProcessor"}, "`image_processor_type` is 'SiglipImageProcessor'"),
        ({"image_std": [0.0] * 3}, "`image_std`"),
    ],
)
def test_a_processor_that_is_not_done_is_refused(wrong, says):
    with pytest.raises(ValueError, match=f"a/file: {says}"):
        preprocessing.from_transformers({"size": 64, "crop_size": 64} | wrong, 64, "a/file")


def test_it_survives_open_clips_form():
    examples = (
        preprocessing.from_side(64),
        preprocessing.Preprocessing((48, 80), "longest", "bilinear", 77 / 255),
        preprocessing.from_hps(preprocessing.from_side(32)),
        preprocessing.from_transformers({"size": 70, "crop_size": 64}, 64, "it"),
    )
    for own in examples:
        own = own._replace(mean=(0.1, 0.2, 0.3), std=(0.4, 0.5, 0.6))
        assert preprocessing.from_open_clip(preprocessing.to_open_clip(own), "it") == own


@pytest.mark.parametrize("shape", [(108, 108), (192, 108), (108, 192), (40, 31), (64, 10)])
def test_hps_v2_fits_the_longer_side_of_a_tensor_on_black(shape):
    """By torchvision's tensor functions, as its publisher does it: resized, centred on 0, then normalised."""
    own = preprocessing.from_hps(preprocessing.from_side(64)._replace(mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4)))
    pixels = images.to_pixels(noise_image(shape))
    fitted = [round(n * 64 / max(shape)) for n in shape]
    dh, dw = (64 - n for n in fitted)
    resized = TF.resize(pixels, fitted, TF.InterpolationMode.BICUBIC)
    expected = TF.normalize(TF.pad(resized, [dw // 2, dh // 2, dw - dw // 2, dh - dh // 2], fill=0), own.mean, own.std)
    for x in (pixels, images.read(noise_image(shape))):
        assert (kernels.preprocess(x[None], own)[0] - expected).abs().max() <= 1e-4


def test_hpsv2_pads_where_its_architecture_cuts(clip_folder, tmp_path):
    """Whatever the folder states: the rule is the publisher's; a scorer that is saved keeps it."""
    hps, clip = loading.load("hpsv2", f"local-dir:{clip_folder}"), loading.load("clip", f"local-dir:{clip_folder}")
    assert hps.preprocessing == preprocessing.from_hps(clip.preprocessing)
    hps.save_pretrained(tmp_path)
    assert loading.load("clip", f"local-dir:{tmp_path}").preprocessing == hps.preprocessing


@pytest.mark.parametrize("change", [{"resize_mode": "squash"}, {"resize_mode": "longest", "fill_color": 90}, {"interpolation": "bilinear"}])
def test_a_folders_own_preprocessing_is_followed(clip_folder, tmp_path, change):
    """open_clip's own number for a picture that is no square, with its own transform; HP of the same folder reads the same pixels."""
    folder = tmp_path / "clip"
    shutil.copytree(clip_folder, folder)
    config = json.loads((folder / "open_clip_config.json").read_text(encoding="utf-8"))
    config["preprocess_cfg"] |= change
    (folder / "open_clip_config.json").write_text(json.dumps(config), encoding="utf-8")
    model, transform = open_clip.create_model_from_pretrained(f"local-dir:{folder}")
    image, ids = noise_image((150, 210)), open_clip.get_tokenizer(f"local-dir:{folder}")(["a red circle"])
    with torch.no_grad():
        expected = (model.eval().encode_image(transform(image)[None], normalize=True) * model.encode_text(ids, normalize=True)).sum()
    scorer = loading.load("clip", f"local-dir:{folder}")
    assert scorer.rank("a red circle", [image])[0][1] == pytest.approx(expected.item(), abs=2e-3)
    pixels = images.to_pixels(image)[None].requires_grad_()
    scorer.score(pixels, ["a red circle"]).sum().backward()
    assert pixels.grad.isfinite().all() and pixels.grad.abs().max() > 0
    plain = loading.load("clip", f"local-dir:{clip_folder}")
    assert abs(plain.rank("a red circle", [image])[0][1] - expected.item()) > 1e-3 or "interpolation" in change
    assert repr(plain) != repr(scorer)  # part of a cache's key


def test_towers_of_other_preprocessing_do_not_share_a_resizing(clip_folder):
    ict, other = (loading.load("clip", f"local-dir:{clip_folder}") for _ in range(2))
    open_clip.set_model_preprocess_cfg(other.model, preprocessing.to_open_clip(other.preprocessing._replace(mode="squash")))
    pixels, prompts = torch.rand(2, 3, 90, 160), ["a", "b"]
    for clip in (ict, other):
        hp = HpScorer(clip, make_head(16)).eval()
        both = combined.IctHpScorer(ict, hp)
        torch.testing.assert_close(both.score(pixels, prompts), ict.score(pixels, prompts) * hp.score(pixels))
    assert not torch.allclose(ict.score(pixels, prompts), other.score(pixels, prompts), atol=1e-3)
    twice = ict.preprocessing._replace(resize=(80, 80))  # its result would be resized again
    open_clip.set_model_preprocess_cfg(ict.model, preprocessing.to_open_clip(twice))
    both = combined.IctHpScorer(ict, HpScorer(ict, make_head(16)).eval())
    torch.testing.assert_close(both.score(pixels, prompts), ict.score(pixels, prompts) * both.hp.score(pixels))


# ---- files beside the weights  -------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def transformers_folder(tmp_path_factory):
    torch.manual_seed(0)
    tower = {"hidden_size": 32, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2, "hidden_act": "quick_gelu"}
    config = CLIPConfig(vision_config=tower | {"image_size": 32, "patch_size": 8}, projection_dim=16,
                        text_config=tower | {"vocab_size": 49408, "max_position_embeddings": 24, "eos_token_id": 49407})  # fmt: skip
    model = CLIPModel(config).eval()
    for p in model.parameters():
        torch.nn.init.normal_(p, std=0.3)
    folder = tmp_path_factory.mktemp("transformers")
    model.save_pretrained(folder)
    return folder


@pytest.mark.parametrize("file", ["preprocessor_config.json", "processor_config.json"])
def test_a_transformers_folder_is_read_with_its_processor(transformers_folder, tmp_path, file):
    """The score of CLIPModel on the pixels of its own image processor, of a picture that is no square; newer versions nest its config."""
    folder = tmp_path / "clip"
    shutil.copytree(transformers_folder, folder)
    processor = CLIPImageProcessor(size={"height": 40, "width": 48}, crop_size=32, resample=2, image_mean=[0.4] * 3, image_std=[0.3] * 3)
    config = json.loads(processor.to_json_string())
    (folder / file).write_text(json.dumps(config if file.startswith("pre") else {"image_processor": config}), encoding="utf-8")
    scorer, image = loading.load("clip", f"local-dir:{folder}"), noise_image((77, 150))
    with torch.no_grad():
        out = CLIPModel.from_pretrained(folder)(
            input_ids=scorer.tokenizer(["a cat"]), pixel_values=processor(image, return_tensors="pt").pixel_values
        )
    assert scorer.rank("a cat", [image])[0][1] == pytest.approx((out.image_embeds * out.text_embeds).sum().item(), abs=5e-3)
    scorer.save_pretrained(tmp_path / "saved")
    assert loading.load("clip", f"local-dir:{tmp_path}/saved").preprocessing == scorer.preprocessing


@pytest.mark.parametrize(("part", "field", "value"), [("vision_config", "hidden_act", "relu"), ("text_config", "layer_norm_eps", 1e-6),
                                                      ("text_config", "eos_token_id", 5)])  # fmt: skip
def test_towers_that_would_be_built_wrongly_are_refused(transformers_folder, tmp_path, part, field, value):
    shutil.copytree(transformers_folder, tmp_path / "clip")
    file = tmp_path / "clip/config.json"
    config = json.loads(file.read_text(encoding="utf-8"))
    config[part][field] = value
    file.write_text(json.dumps(config), encoding="utf-8")
    with pytest.raises(ValueError, match=f"config.json: `{field}`"):
        loading.load("clip", f"local-dir:{tmp_path}/clip")


def test_a_file_has_the_activation_of_the_config_beside_it(transformers_folder, tmp_path):
    """ARCH/file with and without a config.json or open_clip_config.json, which alone can say quick_gelu."""
    config = configs.model_config(f"local-dir:{transformers_folder}")
    (tmp_path / "arch").mkdir()
    (tmp_path / "arch/tiny-quick.json").write_text(json.dumps({k: v for k, v in config.items() if k != "quick_gelu"}), encoding="utf-8")
    open_clip.add_model_config(tmp_path / "arch")
    pixels, prompts = torch.rand(2, 3, 32, 32), ["a cat", "a dog"]
    expected = loading.load("clip", f"local-dir:{transformers_folder}").score(pixels, prompts)
    alone = tmp_path / "alone/model.safetensors"
    alone.parent.mkdir()
    shutil.copy(transformers_folder / "model.safetensors", alone)
    score = lambda: loading.load("clip", f"tiny-quick/{alone}").score(pixels, prompts)
    assert (score() - expected).abs().max() > 2e-4  # the file does not tell
    for name, contents in (("config.json", json.loads((transformers_folder / "config.json").read_text(encoding="utf-8"))),
                       ("open_clip_config.json", {"model_cfg": config, "preprocess_cfg": {"resize_mode": "squash"}})):  # fmt: skip
        (alone.parent / name).write_text(json.dumps(contents), encoding="utf-8")
        torch.testing.assert_close(score(), expected, rtol=1e-4, atol=1e-5)
        assert configs.model_config(f"tiny-quick/{alone}")["quick_gelu"]
    assert loading.load("clip", f"tiny-quick/{alone}").preprocessing.mode == "squash"


# ---- memory -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("shape", [(1, 4000), (4000, 1), (3, 2000), (2000, 5)])
@pytest.mark.parametrize("mode", ["shortest", "longest", "squash"])
def test_a_thin_picture_is_cut_before_it_is_enlarged(shape, mode):
    """The value is the slow twin's on the same picture, and next to nothing is allocated: the whole would be some 100 MB."""
    own, image = preprocessing.Preprocessing((64, 64), mode), images.read(noise_image(shape))[None]
    slow = preprocessing.resize_center_crop(image.double() / 255, own)
    sizes = []

    class Watch(torch.utils._python_dispatch.TorchDispatchMode):
        def __torch_dispatch__(self, function, types, args=(), kwargs=None):
            out = function(*args, **(kwargs or {}))
            sizes.extend(t.untyped_storage().nbytes() for t in ([out] if isinstance(out, torch.Tensor) else []))
            return out

    with Watch():
        fast = kernels.preprocess(image, own), kernels.preprocess(image.float() / 255, own)
    assert max(sizes) < 4e6
    assert max((f - slow).abs().max().item() for f in fast) <= NEAR


@pytest.mark.parametrize("own", [
    preprocessing.Preprocessing((32, 32), "squash", "bilinear"),
    preprocessing.Preprocessing((24, 40), "squash"),
    preprocessing.Preprocessing((32, 32), "longest", fill=0.0),
    preprocessing.Preprocessing((28, 28), "shortest", resize=(32, 32)),
    preprocessing.Preprocessing((28, 28), "shortest", resize=(32, 32), like="transformers"),
    preprocessing.Preprocessing((32, 32)),
], ids=str)  # fmt: skip
def test_triplets_are_read_by_the_towers_own_preprocessing(own, tmp_path):
    """Images that are no squares, cached for a tower and then read by it: the same as the tower makes of the image itself, up to the
    rounding of the cache; the same for triplets of another preprocessing."""
    image = lambda k, h, w: images.encode(torch.rand(1, 3, h, w, generator=torch.Generator().manual_seed(k)))[0]
    labels = {"E1": 0.4, "E2": 0.8, "R1": 0.3, "R2": 0.6, "clip_1": 0.3, "clip_2": 0.6, "text_sim": 0.75, "seed": 0, "split": "t"}
    names = ("easy_prompt", "refined_prompt", "source_1", "source_2", "source_3")
    row = labels | dict.fromkeys(names, "a") | {"prompt_id": 0}
    row |= {"image_1": image(1, 60, 107), "image_2": image(2, 107, 60), "image_3": image(3, 64, 64)}
    write_triplets([row], tmp_path, "t")
    originals = [images.to_pixels(io.BytesIO(row[f"image_{i}"]["bytes"]))[None] for i in (1, 2, 3)]
    want = torch.cat([kernels.preprocess(p, own) for p in originals])
    for triplets in (Triplets(tmp_path, "t", own), Triplets(tmp_path, "t", 16).read_as(own)):
        got = kernels.preprocess(triplets.pixels([0])[:, 0], own)
        assert got.shape == want.shape and (got - want).abs().max() <= 2.01 / 255
        cached = triplets.cache(tmp_path / str(id(triplets)))
        assert (kernels.preprocess(cached.pixels([0])[:, 0], own) - want).abs().max() <= 2.6 / 255
