"""ICT, HP and their controls as stages: what they save, how they resume, what several processes do."""

import base64
import http.server
import io
import json
import os
import socket
import subprocess
import sys
import threading
import time

import numpy as np
import open_clip
import pandas as pd
import pytest
import torch
from huggingface_hub import constants
from PIL import Image
from safetensors.torch import load_file
from torch.utils.flop_counter import FlopCounterMode
from transformers import CLIPImageProcessor

from icthp import freezing, kernels, losses, train
from icthp.data.triplets import Triplets, write_triplets
from icthp.scorers import hub, loading
from icthp.scorers.clip import save_clip
from icthp.scorers.hp import HpScorer, make_head
from test_losses import triplets

SHORT = {"steps": 2, "batch": 4, "lr": 1e-3, "warmup": 0, "validation": 0.2, "validate_every": 1}


@pytest.mark.parametrize("options", [
    {}, {"variant": "released", "rounded": True, "beta": 6.0}, {"objective": "preference"}, {"near_lambda": 0.5},
    {"frozen_fraction": 0.5}, {"ema": 0.9, "accumulate": 2}, {"validation": 0.0, "cache": False}])  # fmt: skip
def test_ict_learns_and_loads(triplets_folder, clip_folder, tmp_path, options):
    history = train.ict(out=tmp_path, triplets=triplets_folder, clip=f"local-dir:{clip_folder}", **SHORT | options)
    scorer, base = (loading.load("ict", f"local-dir:{folder}") for folder in (tmp_path, clip_folder))
    test = Triplets(triplets_folder, "test", scorer.size)
    assert scorer.score(test.pixels([0])[:, 0], [test.texts["easy"][0]] * 3).isfinite().all()
    moved = {k for k, v in scorer.state_dict().items() if not torch.equal(v, base.state_dict()[k])}
    assert moved and len(history) == 2 and list(pd.read_parquet(tmp_path / "history.parquet").step) == [0, 1]
    assert all("val_loss" in row for row in history) == ("validation" not in options)
    if "frozen_fraction" in options:
        assert not any(k.startswith(("model.visual.conv1", "model.token_embedding", "model.visual.transformer.resblocks.0")) for k in moved)


@pytest.mark.parametrize("options", [
    {}, {"objective": "preference"}, {"objective": "uncertain"}, {"head": "linear", "frozen_fraction": 1.0}, {"train_embeddings": True},
    {"head": "released", "hinge_on": "logits", "text_lambda": 1.0, "activation": "softmax", "reduction": "sum"}])  # fmt: skip
def test_hp_learns_and_loads(triplets_folder, clip_folder, tmp_path, options):
    source = f"local-dir:{clip_folder}"
    train.hp(out=tmp_path, triplets=triplets_folder, clip=source, ict=source, **SHORT | options)
    scorer, base = loading.load("hp", str(tmp_path)), loading.load("clip", source)
    values = scorer.score(torch.rand(3, 3, 64, 64))
    assert ((0 < values) & (values < 1)).all() and scorer.config["outputs"] == (2 if options.get("objective") == "uncertain" else 1)
    moved = {k for k, v in scorer.clip.state_dict().items() if not torch.equal(v, base.state_dict()[k])}
    assert not any("token_embedding" in k or k.endswith("visual.proj") or "resblocks.0" in k for k in moved)
    assert bool(moved) == (options.get("frozen_fraction") != 1.0) and any("visual.conv1" in k for k in moved) == options.get(
        "train_embeddings", False
    )


def test_bad_options_are_named(triplets_folder, clip_folder, tmp_path):
    common = {"out": tmp_path, "triplets": triplets_folder, "clip": f"local-dir:{clip_folder}"} | SHORT
    for stage, options, message in (
        (train.ict, {"objective": "hinge"}, "objective must be"),
        (train.hp, {"hinge_on": "logit"}, "hinge_on .score."),
        (train.ict, {"variant": "new"}, "variant must be"),
        (train.hp, {"head": "mlp"}, "head must be"),
        (train.hp, {"frozen_fraction": 2.0}, "frozen_fraction must lie"),
        (train.ict, {"validation": 0.02}, "too few"),
        (train.ict, {"objective": "preference", "near_lambda": 1.0}, "near_lambda needs"),
        (train.ict, {"variant": "units", "theta": 1.0}, "takes no theta"),
        (train.hp, {"text_lambda": 1.0}, "text_lambda needs"),
        (train.ict, {"validation": 1.0}, "validation must lie"),
    ):
        with pytest.raises(ValueError, match=message):
            stage(**common | options)


def test_near_misses_that_are_not_there(triplets_folder, clip_folder, tmp_path, monkeypatch):
    own = Triplets.__init__
    monkeypatch.setattr(Triplets, "__init__", lambda t, *a: (own(t, *a), t.texts.update(near=[None] * len(t)))[0])
    with pytest.raises(ValueError, match="knows no near misses"):
        train.ict(out=tmp_path, triplets=triplets_folder, clip=f"local-dir:{clip_folder}", near_lambda=0.5, **SHORT)


def test_the_scalars_are_those_of_this_ict(triplets_folder, clip_folder, tmp_path):
    """A killed run's scalars are not another ICT's."""

    data = Triplets(triplets_folder, "train", 64)
    one = train._ict_scalars(f"local-dir:{clip_folder}", data, tmp_path, "cpu")
    scorer = loading.load("clip", f"local-dir:{clip_folder}")
    torch.nn.init.normal_(scorer.model.text_projection)
    save_clip(scorer.model, scorer.tokenizer, scorer.architecture, tmp_path / "other", torch.float32)
    two = train._ict_scalars(f"local-dir:{tmp_path / 'other'}", data, tmp_path, "cpu")
    assert not torch.allclose(one, two) and torch.equal(one, train._ict_scalars(f"local-dir:{clip_folder}", data, tmp_path, "cpu"))


def test_the_reward_learns_the_order(triplets_folder, clip_folder, tmp_path):
    """Fitted to 24 triplets, HP orders I3 above I2 in nearly all of them, the same HP after one step of no size in fewer."""
    data = Triplets(triplets_folder, "train", 64)
    accuracy = {}
    for lr in (0.0, 1e-3):
        options = SHORT | {"steps": 60 if lr else 1, "batch": 12, "validation": 0.0, "lr": lr}
        train.hp(out=tmp_path / str(lr), triplets=triplets_folder, clip=f"local-dir:{clip_folder}", **options)
        values = torch.stack([loading.load("hp", str(tmp_path / str(lr))).score(p) for p in data.pixels(range(24))], 1)
        accuracy[lr] = (values[:, 2] > values[:, 1]).double().mean()
    assert accuracy[1e-3] > 0.9 > accuracy[0.0]


@pytest.fixture
def first_loss(triplets_folder, clip_folder, tmp_path):
    """first_loss("ict", **options): the loss of step 0, all triplets in one batch."""
    made = iter(range(99))

    def loss(stage, **options):
        options = SHORT | {"steps": 1, "batch": 24, "validation": 0.0, "lr": 0.0} | options
        common = {"out": tmp_path / str(next(made)), "triplets": triplets_folder, "clip": f"local-dir:{clip_folder}"}
        return train.STAGES[stage](**common, **options)[0]["loss"]

    return loss


def test_every_option_reaches_the_loss(first_loss, clip_folder):
    """Each one changes the first loss; a default that says what it is does not."""
    ict = [{}, {"variant": "released"}, {"theta": 2.0}, {"neg_lambda": 0.1}, {"alpha": 5.0}, {"beta": 0.1}, {"rounded": True},
           {"near_lambda": 0.5}, {"objective": "preference"}]  # fmt: skip
    source = f"local-dir:{clip_folder}"
    text = {"text_lambda": 1.0, "ict": source}
    hp = [{}, {"margin": 0.1}, {"hinge_on": "logits"}, {"head": "linear"}, {"objective": "preference"}, {"objective": "uncertain"}, text,
          text | {"activation": "softmax"}, text | {"reduction": "sum"}]  # fmt: skip
    for stage, options in (("ict", ict), ("hp", hp)):
        found = [round(first_loss(stage, **each), 6) for each in options]
        assert len(set(found)) == len(options), list(zip(options, found))
    assert first_loss("ict", variant="paper", objective="ict") == first_loss("ict")


def test_the_first_loss_is_the_oracles(first_loss, triplets_folder, clip_folder):
    clip, triplets_ = loading.load("clip", f"local-dir:{clip_folder}"), Triplets(triplets_folder, "train", 64)
    with torch.no_grad():
        v = clip.image_features(triplets_.pixels(range(24)).flatten(0, 1)).unflatten(0, (3, -1))
        easy, refined = (clip.text_features(triplets_.texts[kind]) for kind in ("easy", "refined"))
    for variant in ("paper", "released"):
        expected = losses.ict_loss(v, easy, refined, *triplets_.labels(variant), beta=0.5, groups=triplets_.groups)
        assert first_loss("ict", variant=variant) == pytest.approx(expected.item(), rel=1e-5)


def test_a_checkpoint_of_other_options_is_refused(triplets_folder, clip_folder, tmp_path, monkeypatch):
    """Also where step 0 cannot tell: the released head starts at the same loss whatever the data."""
    common = {
        "out": tmp_path,
        "triplets": triplets_folder,
        "clip": f"local-dir:{clip_folder}",
        "head": "released",
        "hinge_on": "logits",
    } | SHORT
    killed_before_the_end(monkeypatch, train.hp, **common)
    with pytest.raises(ValueError, match="config.train_embeddings: was 'False', is 'True'; delete it to start again"):
        train.hp(**common | {"train_embeddings": True})


def killed_before_the_end(monkeypatch, stage, **options) -> None:
    """All steps are done, nothing is saved but the checkpoint."""
    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(train, "_save", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
        stage(**options)


# ---- what is computed, and what is not ------------------------------------------------------------------------------


def count(step) -> float:
    with FlopCounterMode(display=False) as counter:
        step()
    return counter.get_total_flops() / 1e9


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


# ---- killed, and on several processes -------------------------------------------------------------------------------

KILLED = """
import os, sys
import torch
from icthp import train, trainer
out, triplets, clip = sys.argv[1:4]
options = dict(steps=9, batch=4, lr=1e-3, warmup=2, validation=0.2, validate_every=2, ema=0.9, save_every=2)
rate = trainer.learning_rate
torch.set_num_threads(1)
for name, die_at in (pair.split("=") for pair in sys.argv[4:]):
    if os.fork():  # the parent has imported everything and computed nothing
        print(os.WTERMSIG(os.wait()[1]))
        continue
    trainer.learning_rate = lambda step, **kw: os.kill(os.getpid(), 9) if step == int(die_at) else rate(step, **kw)
    train.ict(out=f"{out}/{name}", triplets=triplets, clip="local-dir:" + clip, **options)
    os._exit(0)
"""


def test_kill_9_three_times_gives_the_same_weights(triplets_folder, clip_folder, tmp_path):
    steps = sorted(np.random.default_rng().choice(np.arange(1, 9), 3, replace=False).tolist())
    runs = ["whole=-1", *(f"killed={step}" for step in steps), "killed=-1"]
    done = subprocess.run([sys.executable, "-c", KILLED, tmp_path, triplets_folder, clip_folder, *runs], capture_output=True, text=True)
    assert done.stdout.split() == ["0", "9", "9", "9", "0"], done.stderr
    whole, killed = (load_file(tmp_path / out / "open_clip_model.safetensors") for out in ("whole", "killed"))
    assert all(torch.equal(whole[k], killed[k]) for k in whole), f"killed at {steps}"
    whole, killed = (pd.read_parquet(tmp_path / out / "history.parquet") for out in ("whole", "killed"))
    pd.testing.assert_frame_equal(whole, killed)


SHARDS = """
import sys
import torch
import torch.distributed as dist
from torch.nn.parallel import DistributedDataParallel
from test_train import shard_of_the_loss
dist.init_process_group("gloo")
torch.set_num_threads(1)
out = [shard_of_the_loss(name, dist.get_rank(), 2, DistributedDataParallel) for name in sys.argv[2:]]
if dist.get_rank() == 0:
    torch.save(out, sys.argv[1])
dist.destroy_process_group()
"""
SHARDED = {"gram": {"beta": 6.0}, "weights": {"beta": 0.1}, "groups": {"beta": 6.0, "groups": torch.arange(12) // 3}}
SHARDED["sample weights"] = {"sample_weights": torch.arange(12) / 12, "negative_target": 0.1}


def shard_of_the_loss(name, rank, world_size, wrap):
    """[loss of the global batch, gradient of a layer that makes the features], of the `rank`-th of `world_size` equal parts."""
    images, easy, refined, *labels = triplets(12, 10)
    torch.manual_seed(0)
    layer, mine = torch.nn.Linear(10, 10).double(), slice(rank, None, world_size)
    model = wrap(layer)
    features = model(torch.cat([images[:, mine].flatten(0, 1), easy[mine], refined[mine]]))
    v, e, r = torch.nn.functional.normalize(features, dim=-1).split([36 // world_size, 12 // world_size, 12 // world_size])
    options = {k: value[mine] if isinstance(value, torch.Tensor) else value for k, value in SHARDED[name].items()}
    loss = kernels.sharded_ict_loss(v.unflatten(0, (3, -1)), e, r, *(part[mine] for part in labels), **options)
    loss.backward()
    value = loss.detach().clone()
    if world_size > 1:
        torch.distributed.all_reduce(value)
    return [value / world_size, layer.weight.grad]


def free_port() -> str:
    with socket.socket() as s:
        s.bind(("127.0.0.1", 0))
        return str(s.getsockname()[1])


def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    """The global batch in one process and in halves, under DistributedDataParallel: Gram matrices, weights, repeated prompts."""
    (tmp_path / "shards.py").write_text(SHARDS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    here = os.environ | {"PYTHONPATH": os.path.dirname(__file__)}
    subprocess.run([*launch, tmp_path / "shards.py", tmp_path / "two.pt", *SHARDED], check=True, timeout=300, env=here)
    for name, two in zip(SHARDED, torch.load(tmp_path / "two.pt", weights_only=True)):
        for a, b in zip(shard_of_the_loss(name, 0, 1, lambda layer: layer), two):
            assert (a - b).norm() <= 1e-10 * a.norm(), name


def test_accelerate_launch_trains_what_one_process_trains(triplets_folder, clip_folder, tmp_path):
    """`accelerate launch -m icthp.train --stage ict` on two processes, from a params.yaml."""
    options = {"steps": 3, "batch": 4, "lr": 0.001, "warmup": 0, "validation": 0.2, "beta": 6.0}
    options |= {"triplets": str(triplets_folder), "clip": f"local-dir:{clip_folder}"}
    (tmp_path / "params.yaml").write_text(json.dumps({"shared": {"seed": 3, "device": "cpu", "size": 64}, "train_ict": options}))
    launch = [sys.executable, "-m", "accelerate.commands.launch", "--multi_gpu", "--num_machines=1", "--mixed_precision=no"]
    launch += [
        "--dynamo_backend=no",
        "--num_processes=2",
        f"--main_process_port={free_port()}",
        "-m",
        "icthp.train",
        "--stage=ict",
        "out=two",
    ]
    subprocess.run(launch, cwd=tmp_path, check=True, timeout=300, env=os.environ | {"OMP_NUM_THREADS": "1"})
    train.ict(out=tmp_path / "one", seed=3, **options)
    one, two = (load_file(tmp_path / name / "open_clip_model.safetensors") for name in ("one", "two"))
    # a key's bias shifts all logits of a softmax alike, so its gradient is rounding, which AdamW makes a full step of
    assert all((one[k] - two[k]).norm() <= 1e-5 * one[k].norm() for k in one if "in_proj_bias" not in k)
    histories = [pd.read_parquet(tmp_path / name / "history.parquet") for name in ("one", "two")]
    assert np.allclose(*(h.loss for h in histories), rtol=1e-5) and [h.processes[0] for h in histories] == [1, 2]


# ---- sharing --------------------------------------------------------------------------------------------------------


@pytest.fixture
def pushed(monkeypatch):
    """A local Hub: as much of its HTTP interface as a push of small files uses. Yields {path in the repository: its bytes}."""
    files = {}

    class Hub(http.server.BaseHTTPRequestHandler):
        def answer(self, value):
            body = json.dumps(value).encode()
            self.send_response(200)
            self.send_header("Content-Type", "application/json")
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def do_GET(self):
            self.answer({"id": "me/ict", "sha": "0" * 40, "siblings": []})

        def do_POST(self):
            body, url = self.rfile.read(int(self.headers["Content-Length"] or 0)), f"http://127.0.0.1:{self.server.server_port}/me/ict"
            if self.path.endswith("/repos/create"):
                return self.answer({"url": url, "name": "me/ict"})
            if "/preupload/" in self.path:
                asked = json.loads(body)["files"]
                return self.answer({"files": [{"path": f["path"], "uploadMode": "regular", "shouldIgnore": False} for f in asked]})
            if "/commit/" in self.path:
                for line in map(json.loads, body.splitlines()):
                    if line["key"] == "file":
                        files[line["value"]["path"]] = base64.b64decode(line["value"]["content"])
                return self.answer({"success": True, "commitUrl": f"{url}/commit/{'0' * 40}", "commitOid": "0" * 40})
            return self.answer({})

        def log_message(self, *_):
            pass

    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Hub)
    threading.Thread(target=server.serve_forever, daemon=True).start()
    monkeypatch.setattr(constants, "ENDPOINT", f"http://127.0.0.1:{server.server_port}")
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
    yield files
    server.shutdown()


@pytest.mark.parametrize("name", ["ict", "hp"])
def test_a_pushed_scorer_is_the_saved_one(pushed, clip_folder, tmp_path, name):
    """The whole folder, card included, goes to the Hub in one commit, and what arrives loads and scores alike."""
    clip = loading.load("clip", f"local-dir:{clip_folder}")
    config = {"width": 16, "variant": "paper", "outputs": 1}
    scorer = clip if name == "ict" else HpScorer(clip, make_head(**config), config).eval()
    scorer.save_pretrained(tmp_path / "saved")
    measured = {"ict_i2_i1_acc": 0.61, "ict_i2_i1_acc_low": 0.5, "ict_i2_i1_acc_high": 0.7, "ict_i2_i1_acc_n": 90, "final_loss": 0.2}
    hub.write_model_card(tmp_path / "saved", name, "micro", {"steps": 9, "variant": "paper"}, measured)
    source = f"local-dir:{tmp_path / 'saved'}" if name == "ict" else str(tmp_path / "saved")
    loading.load(name, source).push_to_hub("me/ict", token="hf_test")
    for path, contents in pushed.items():
        (tmp_path / "arrived" / path).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "arrived" / path).write_bytes(contents)
    again = loading.load(name, source.replace("saved", "arrived"))
    pixels = torch.rand(2, 3, 64, 64)
    assert torch.equal(again.score(pixels, ["a", "b"]), scorer.score(pixels, ["a", "b"]))
    card = (tmp_path / "arrived/README.md").read_text(encoding="utf-8")
    assert "| ict_i2_i1_acc | 0.610 | 0.500 to 0.700 | 90 |" in card and "final_loss" not in card and "- steps: `9`" in card
    assert "micro numbers" in card and "Known failures" in card and card.startswith("---\n")
    trainable = type(scorer).from_pretrained(str(tmp_path / "arrived"))  # another path through torch's attention than frozen weights take
    assert torch.allclose(trainable.score(pixels, ["a", "b"]), scorer.score(pixels, ["a", "b"]), atol=2e-6)


@pytest.mark.parametrize("share", [0.1, 0.2, 0.3, 0.4, 0.5, 0.7, 0.9])
def test_about_the_share_asked_for_is_held_out(share):
    groups = torch.arange(300).repeat_interleave(2)
    held_out = train._held_out(groups, share)
    assert held_out.double().mean().item() == pytest.approx(share, abs=0.04) and torch.equal(held_out[::2], held_out[1::2])
