"""Operations of a training step, and the time that its pictures take."""

import io
import time

import open_clip
import pytest
import torch
from PIL import Image
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPImageProcessor

from icthp import freezing, losses
from icthp.data.triplets import Triplets, write_triplets
from icthp.scorers.hp import make_head


def count(step) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


@pytest.mark.slow
def test_step_flops_at_the_papers_size():
    """ViT-H/14 on the meta device, GFLOP a triplet: ICT without HP's tower; HP with cached ICT scalars, where the embeddings train, so that
    the backward pass crosses the frozen half, and where they are frozen too."""
    with torch.device("meta"):
        clip, head = open_clip.CLIP(**open_clip.get_model_config("ViT-H-14")), make_head(1024, "released")
        pixels, tokens, labels = torch.empty(6, 3, 224, 224), torch.zeros(4, 77, dtype=torch.long), torch.empty(2, 3)

    def ict():
        v, t, _ = clip(pixels, tokens)
        losses.ict_loss(v.unflatten(0, (3, -1)), *t.chunk(2), labels, labels).backward()

    def hp():
        losses.hp_loss(head(clip.encode_image(pixels)).sigmoid().view(3, -1).T).backward()

    assert round(count(ict) / 2) == 3293
    clip.requires_grad_(False)
    layers, embeddings = freezing.image_layers(clip)
    for train_embeddings, expected in ((True, 2525), (False, 2006)):
        torch.nn.ModuleList(layers).requires_grad_(True)
        freezing.freeze(layers, embeddings, 0.5, train_embeddings)
        assert round(count(hp) / 2) == expected


def test_cached_pictures_are_the_decoded_ones(triplets_folder, tmp_path):
    plain, cached = (Triplets(triplets_folder, "train", 48) for _ in range(2))
    assert (cached.cache(tmp_path).pixels([3, 0]) - plain.pixels([3, 0])).abs().max() <= 0.5 / 255 + 1e-6
    times = [p.stat().st_mtime_ns for p in tmp_path.iterdir()]
    Triplets(triplets_folder, "train", 48).cache(tmp_path)
    assert [p.stat().st_mtime_ns for p in tmp_path.iterdir()] == times and len(times) == 1
    Triplets(triplets_folder, "test", 48).cache(tmp_path)  # other pictures, another file
    assert len(list(tmp_path.iterdir())) == 2


def test_loader_is_twenty_times_the_released_one(tmp_path):
    """P18: 1024-pixel PNG files, as the released dataset class reads them (PIL, then CLIP's processor, one by one) and from the store."""
    noise = torch.rand(1, 3, 128, 128, generator=torch.Generator().manual_seed(0))
    large = torch.nn.functional.interpolate(noise, (1024, 1024), mode="bicubic")[0].clamp(0, 1).mul(255).byte().permute(1, 2, 0).numpy()
    Image.fromarray(large).save(buffer := io.BytesIO(), "PNG")
    row = {f"image_{i}": {"bytes": buffer.getvalue(), "path": None} for i in (1, 2, 3)} | {"easy_prompt": "a", "refined_prompt": "b"}
    row |= {"E1": 0.5, "E2": 0.5, "R1": 0.5, "R2": 0.5, "seed": 0, "split": "train", "source_1": "", "source_2": "", "source_3": ""}
    write_triplets([row | {"prompt_id": i} for i in range(4)], tmp_path, "train")
    cached, processor = Triplets(tmp_path, "train", 224).cache(tmp_path / "store"), CLIPImageProcessor()

    def seconds(load, times):
        load()
        start = time.process_time()
        for _ in range(times):
            load()
        return (time.process_time() - start) / times

    released = seconds(lambda: [processor(Image.open(io.BytesIO(buffer.getvalue())), return_tensors="pt") for _ in range(3)], 3)
    ours = seconds(lambda: cached.pixels([0, 1, 2, 3]), 20) / 4
    assert released > 20 * ours, f"{released / ours:.1f} times"
