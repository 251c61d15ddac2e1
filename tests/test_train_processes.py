"""Training stages that are killed, and on several processes."""

import json
import os
import socket
import subprocess
import sys

import numpy as np
import pandas as pd
import pytest
import torch
from safetensors.torch import load_file

from icthp import kernels, train
from test_losses import triplets

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
from test_train_processes import shard_of_the_loss
dist.init_process_group("gloo")
torch.set_num_threads(1)
out = [shard_of_the_loss(name, dist.get_rank(), 2, DistributedDataParallel) for name in sys.argv[2:]]
if dist.get_rank() == 0:
    torch.save(out, sys.argv[1])
dist.destroy_process_group()
"""

SHARDED = {"gram": {"beta": 6.0}, "weights": {"beta": 0.1}, "groups": {"beta": 6.0, "groups": torch.arange(12) // 3}}


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


@pytest.mark.slow
def test_two_processes_give_the_loss_and_gradients_of_one(tmp_path):
    """The global batch in one process and in halves, under DistributedDataParallel: Gram matrices, weights, repeated prompts."""
    (tmp_path / "shards.py").write_text(SHARDS)
    launch = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node=2", f"--master-port={free_port()}"]
    paths = os.pathsep.join([os.path.dirname(__file__), os.environ.get("PYTHONPATH", "")])
    environment = os.environ | {"PYTHONPATH": paths}
    subprocess.run([*launch, tmp_path / "shards.py", tmp_path / "two.pt", *SHARDED], check=True, timeout=300, env=environment)
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
