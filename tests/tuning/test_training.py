"""A tuning that is killed goes on to the same adapter; two processes tune as one does."""

import random
import subprocess
import sys

import pytest
import torch
from safetensors.torch import load_file

from icthp import pipelines
from icthp.tuning.lora import add_lora, save_lora

KILLED = """
import os, sys
from functools import partial
import torch
from icthp import pipelines, trainer, tuning
sd3, out = sys.argv[1:3]
rate = trainer.learning_rate
torch.set_num_threads(1)
def tune(name):
    pipe = pipelines.load_pipeline(sd3)
    tuning.add_lora(pipe, rank=2)
    validate = lambda *_: tuning.generate(pipe, ["a red circle"], steps=2).mean()
    tuning.tune(pipe, ["a red circle", "two blue stars", "a green heart"], lambda pixels, prompts: -pixels.square().mean((1, 2, 3)),
               partial(tuning.draft_step, steps=2, merge=True), batch=4, steps=9, lr=1e-2, checkpoint=f"{out}/{name}/c.pt", save_every=2,
               validate=validate, validate_every=3)
    tuning.save_lora(pipe, f"{out}/{name}")
for name, die_at in (pair.split("=") for pair in sys.argv[3:]):
    if os.fork():
        print(os.WTERMSIG(os.wait()[1]))
        continue
    trainer.learning_rate = lambda step, **kw: os.kill(os.getpid(), 9) if step == int(die_at) else rate(step, **kw)
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


TWO_PROCESSES = """
import sys
from functools import partial
import torch
from icthp import pipelines, tuning
sd3, out, method = sys.argv[1:]
torch.set_num_threads(1)
pipe = pipelines.load_pipeline(sd3)
tuning.add_lora(pipe, rank=2)
from icthp.tuning import optimisers
update = {"draft": partial(tuning.draft_step, steps=2, lv_samples=2),
          "dpo": partial(tuning.fit_step, steps=2, loss=partial(optimisers.dpo, beta=50.0))}[method]
reward = lambda pixels, prompts: -pixels.square().mean((1, 2, 3)) * torch.tensor([len(p) for p in prompts])
history = tuning.tune(pipe, ["a red circle", "two blue stars", "a green heart"], reward, update, batch=4, steps=3, lr=1e-2, accumulate=2)
tuning.save_lora(pipe, f"{out}.{__import__('accelerate').PartialState().process_index}")
print(history[-1]["reward"])
"""


@pytest.mark.parametrize("method", ["draft", "dpo"])
def test_two_processes_tune_as_one_does(sd3_folder, tmp_path, method):
    """Every picture has its own noise and gradients are averaged, so the number of processes changes nothing."""
    (tmp_path / "tune.py").write_text(TWO_PROCESSES)
    launch = ["-m", "torch.distributed.run", "--standalone", "--nproc_per_node", "2"]
    for name, command in (("one", []), ("two", launch)):
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
