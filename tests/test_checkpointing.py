"""What a checkpoint holds, which run it belongs to, and what a damaged one says."""

import subprocess
import sys

import numpy as np
import pytest
import torch

from icthp import trainer
from test_trainer import fitted, line, straight_line


def run(path=None, die_at=None, steps=9, lr=0.1, noise=0.0):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))

    def loss_fn(model, step):
        if step == die_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4) + noise
        return (model(x) - x.sum(1, keepdim=True)).square().mean(), {"first": x[0, 0].item()}

    try:
        history = trainer.train(model, loss_fn, steps=steps, lr=lr, warmup=2, checkpoint=path, save_every=2)
    except KeyboardInterrupt:
        return None, None
    return model.state_dict(), history


def test_a_killed_run_goes_on_to_the_same_numbers(tmp_path):
    """Killed at step 5 with a checkpoint of step 4: dropout, data, schedule and optimiser state all go on."""
    whole, history = run()
    run(tmp_path / "c.pt", die_at=5)
    resumed, again = run(tmp_path / "c.pt")
    assert history == again and len(history) == 9
    assert all(torch.equal(whole[k], resumed[k]) for k in whole)
    assert [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_a_finished_run_is_not_repeated(tmp_path):
    first = run(tmp_path / "c.pt")
    second = run(tmp_path / "c.pt", die_at=1)  # only step 0 is, to see that the run is the same
    assert second[1] == first[1]


def test_a_checkpoint_of_other_hyperparameters_is_refused(tmp_path):
    """And the message says what differs, not all that there is."""
    run(tmp_path / "c.pt")
    with pytest.raises(ValueError, match=r"c.pt is another run's: lr: was 0.1, is 0.2; delete it to start again$"):
        run(tmp_path / "c.pt", lr=0.2)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    run(tmp_path / "c.pt")
    with pytest.raises(ValueError, match="c.pt began with loss .* delete it to start again"):
        run(tmp_path / "c.pt", noise=0.5)


def test_a_checkpoint_holds_what_trains(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2).requires_grad_(False), torch.nn.Linear(2, 1))
    trainer.train(model, lambda m, step: (m(torch.ones(1, 2)).sum().square(), {}), steps=2, lr=0.1, checkpoint=tmp_path / "c.pt")
    assert set(torch.load(tmp_path / "c.pt", weights_only=True)["model"]) == {"1.weight", "1.bias"}


def test_a_full_disk_leaves_the_checkpoint_before(tmp_path, monkeypatch):
    save, written = torch.save, []

    def full(state, path):
        written.append(path)
        if len(written) == 3:
            path.write_bytes(b"half")
            raise OSError(28, "No space left on device")
        save(state, path)

    monkeypatch.setattr(torch, "save", full)
    with pytest.raises(OSError, match="No space left"):
        run(tmp_path / "c.pt")
    assert len(torch.load(tmp_path / "c.pt", weights_only=True)["history"]) == 4
    monkeypatch.setattr(torch, "save", save)
    resumed, history = run(tmp_path / "c.pt")
    whole, expected = run()
    assert history == expected and all(torch.equal(whole[k], resumed[k]) for k in whole)


def test_the_callers_config_keeps_its_own_names(tmp_path):
    """The trainer's `clip` bounds the gradient; a caller's may be the name of a model."""
    straight_line(tmp_path / "c.pt", config={"clip": "one", "rows": 3})
    assert straight_line(tmp_path / "c.pt", config={"clip": "one", "rows": 3})[0] is not None
    with pytest.raises(ValueError, match=r"another run's: config.clip: was 'one', is 'two'; config.rows: was 3, is 'absent'; delete"):
        straight_line(tmp_path / "c.pt", config={"clip": "two"})
    with pytest.raises(ValueError, match=r"another run's: clip: was 1.0, is 2.0; delete"):
        straight_line(tmp_path / "c.pt", clip=2.0, config={"clip": "one", "rows": 3})


def test_a_checkpoint_of_another_base_is_refused(tmp_path):
    """Its first loss is the same: what differs is frozen and reached by later batches only."""

    def tune(value):
        base, top = torch.nn.Embedding(4, 1), torch.nn.Linear(1, 1)
        for p, fill in ((base.weight, 1.0), (top.weight, 1.0), (top.bias, 0.0)):
            torch.nn.init.constant_(p, fill)
        base.weight.data[3] = value
        model = torch.nn.Sequential(base.requires_grad_(False), top)
        loss_fn = lambda m, i: (m(torch.tensor([i])).square().sum(), {})
        return trainer.train(model, loss_fn, steps=4, lr=0.1, checkpoint=tmp_path / "c.pt")

    assert tune(1.0) == tune(1.0)
    with pytest.raises(ValueError, match="another run's: model: was '[0-9a-f]+', is '[0-9a-f]+'; delete it to start again"):
        tune(2.0)


@pytest.mark.parametrize("spoil", [lambda b: b"", lambda b: b[: len(b) // 2], lambda b: b"no checkpoint", lambda b: b[:-30]])
def test_a_damaged_checkpoint_is_named(tmp_path, spoil):
    straight_line(tmp_path / "c.pt")
    (tmp_path / "c.pt").write_bytes(spoil((tmp_path / "c.pt").read_bytes()))
    with pytest.raises(ValueError, match=r"c.pt is missing, cut or damaged: delete .*c.pt to start again"):
        straight_line(tmp_path / "c.pt")
    torch.save([1, 2], tmp_path / "c.pt")
    with pytest.raises(ValueError, match="c.pt is no checkpoint of this trainer: delete it"):
        straight_line(tmp_path / "c.pt")


def test_a_checkpoint_of_the_first_version_is_refused(tmp_path):
    """Its config was called another name, and held other ones."""
    torch.save({"recipe": {}, "model": {}, "optimizer": {}, "history": []}, tmp_path / "c.pt")
    with pytest.raises(ValueError, match="c.pt is a run of icthp 0.1.0: finish it with that version, or delete it to start again"):
        straight_line(tmp_path / "c.pt")


def test_best_weights_that_are_gone_are_missed_at_once(tmp_path):
    options = {"validate": lambda model, _: model.weight.abs().item(), "validate_every": 1, "restore_best": True, "steps": 8}
    straight_line(tmp_path / "c.pt", die_at=4, **options)
    (tmp_path / "c.best.pt").write_bytes(b"")
    with pytest.raises(ValueError, match=r"c.best.pt is missing, cut or damaged: delete .*c.pt to start again"):
        straight_line(tmp_path / "c.pt", die_at=4, **options)  # before the next step


def test_a_run_that_stops_early_leaves_a_checkpoint(tmp_path):
    """Whatever save_every is: started again, it is still finished."""
    options = {"validate": lambda model, _: (model.weight + 0.3).abs().item(), "validate_every": 1, "patience": 2, "save_every": 100}
    first = straight_line(tmp_path / "c.pt", steps=20, **options)
    assert len(torch.load(tmp_path / "c.pt", weights_only=True)["history"]) == len(first[1]) == 5
    assert straight_line(tmp_path / "c.pt", steps=20, die_at=1, **options) == first


FULL = """
import resource, signal, sys
import torch
from icthp import trainer
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
torch.manual_seed(0)
model = torch.nn.Linear(500, 10)

def loss_fn(m, step):
    if step == 3:
        resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, 20_000))
    return m(torch.ones(1, 500)).square().mean(), {}

try:
    trainer.train(model, loss_fn, steps=8, lr=0.1, checkpoint=sys.argv[1], save_every=2)
except OSError as error:
    print("MESSAGE", error)
"""


@pytest.mark.slow
def test_a_disk_that_is_full_half_way_leaves_the_checkpoint_before(tmp_path):
    """The file system itself refuses the second checkpoint after 20 kB of it."""
    path = tmp_path / "c.pt"
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, timeout=120)
    assert f"MESSAGE {path} could not be written; what was there before is untouched" in done.stdout, done.stderr[-2000:]
    assert len(torch.load(path, weights_only=True)["history"]) == 2 and [p.name for p in tmp_path.iterdir()] == ["c.pt"]


def test_two_runs_of_one_folder_keep_their_own_best(tmp_path):
    """Names with a point in them: NAME.best.pt is NAME's."""
    for name in ("lr0.1", "lr0.2"):
        fitted(line(), tmp_path / name, restore_best=True, validate=lambda m, _: 1.0, validate_every=2)
    assert {p.name for p in tmp_path.iterdir()} == {"lr0.1", "lr0.2", "lr0.1.best.pt", "lr0.2.best.pt"}


def test_a_number_of_numpy_can_be_read_again(tmp_path):
    once = fitted(line(), tmp_path / "c.pt", lr=np.logspace(-4, -3, 2)[0])
    assert fitted(line(), tmp_path / "c.pt", lr=np.logspace(-4, -3, 2)[0]) == once
