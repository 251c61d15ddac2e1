import contextlib
import math
import subprocess
import sys

import numpy as np
import pytest
import torch
from accelerate import Accelerator, PartialState

from icthp import trainer


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


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_batch_and_leaves_the_checkpoint(tmp_path, bad):
    model = torch.nn.Linear(1, 1)
    loss_fn = lambda m, step: ((m(torch.ones(1, 1)) - 3).square().sum() * (bad if step == 5 else 1), {})
    says = r"loss is (nan|inf) at step 5; lower the learning rate 0.1, or look at this batch, prompt_id \[50, 51\]"
    with pytest.raises(FloatingPointError, match=says):
        trainer.train(
            model, loss_fn, steps=9, lr=0.1, checkpoint=tmp_path / "c.pt", save_every=2, prompt_ids=lambda i: [10 * i, 10 * i + 1]
        )
    assert all(p.isfinite().all() for p in model.parameters())
    assert len(torch.load(tmp_path / "c.pt", weights_only=True)["history"]) == 4


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


def test_training_without_a_gradient_is_refused():
    with torch.no_grad(), pytest.raises(ValueError, match="no gradient"):
        trainer.train(torch.nn.Linear(1, 1), lambda m, step: (m(torch.ones(1, 1)).sum(), {}), steps=2, lr=1.0)


def test_batches_show_every_row_once_an_epoch():
    rows = torch.cat([trainer.batch_indices(step, n=10, size=4) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert torch.equal(trainer.batch_indices(3, n=10, size=4), trainer.batch_indices(3, n=10, size=4))
    assert len(trainer.batch_indices(0, n=3, size=8)) == 8  # a table smaller than the batch


def test_learning_rate_closed_form():
    at = lambda step, **k: trainer.learning_rate(step, steps=110, peak=2.0, warmup=10, **k)
    assert [at(0), at(9), at(10)] == [0.2, 2.0, 2.0]
    assert at(60) == pytest.approx(1.0) and at(35) == pytest.approx(1 + math.cos(math.pi / 4))
    assert at(60, schedule="linear") == 1.0 and at(109, schedule="constant") == 2.0
    with pytest.raises(ValueError, match="schedule"):
        at(60, schedule="step")


def test_a_precision_that_is_none_is_named():
    with pytest.raises(ValueError, match="precision must be one of no, bf16, not 'fp16'"):
        straight_line(precision="fp16")


def straight_line(path=None, steps=6, die_at=None, **options):
    """One weight, the loss 2 w: with plain steps a straight line. Returns (final weight, history)."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)

    def loss_fn(model, i):
        if i == die_at:
            raise KeyboardInterrupt
        return (model(torch.ones(1, 1)) * (1 + i % 2)).sum(), {"i": i}

    options = {"lr": 0.1, "schedule": "constant", "weight_decay": 0, "checkpoint": path, "save_every": 1} | options
    try:
        history = trainer.train(model, loss_fn, steps=steps, **options)
    except KeyboardInterrupt:
        return None, None
    return model.weight.item(), history


def test_accumulated_batches_are_one_step_of_their_mean():
    weight, history = straight_line(accumulate=2, clip=1e9)
    assert [row["grad_norm"] for row in history] == pytest.approx([1.5] * 6)  # the mean of 1 and 2
    assert [row["i"] for row in history] == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5] and weight == pytest.approx(-0.6, abs=1e-6)


def test_the_average_of_the_weights_is_what_remains(tmp_path):
    """diffusers' schedule of the decay: 0 at the first step, then (1 + n) / (10 + n) at most `ema`; killed in between or not."""
    weight, _ = straight_line()
    average, plain = 0.0, 0.0
    for n in range(6):
        plain -= 0.1
        decay = min((1 + n) / (10 + n), 0.3) if n else 0.0
        average = decay * average + (1 - decay) * plain
    assert weight == pytest.approx(-0.6, abs=1e-6)
    whole, _ = straight_line(ema=0.3)
    straight_line(tmp_path / "c.pt", ema=0.3, die_at=4)
    assert straight_line(tmp_path / "c.pt", ema=0.3)[0] == whole == pytest.approx(average, abs=1e-6)


def test_the_best_weights_are_kept(tmp_path):
    """Validation is lowest at w = -0.3, after three of six steps; every second step validates, so step four's are the best."""
    validate = lambda model, _: (model.weight + 0.35).abs().item()
    options = {"validate": validate, "validate_every": 2}
    weight, history = straight_line(tmp_path / "c.pt", restore_best=True, **options)
    assert weight == pytest.approx(-0.4, abs=1e-6) and [h.get("val_loss") is not None for h in history] == [False, True] * 3
    assert torch.load(tmp_path / "c.best.pt", weights_only=True)["weight"].item() == pytest.approx(-0.4, abs=1e-6)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["model"]["weight"].item() == pytest.approx(-0.6, abs=1e-6)
    assert straight_line(tmp_path / "d.pt", **options)[0] == pytest.approx(-0.6, abs=1e-6)
    with pytest.raises(ValueError, match="restore_best needs a checkpoint and a validation"):
        straight_line(restore_best=True)


def test_patience_stops_the_run_and_it_stays_stopped(tmp_path):
    """Lowest after the third step; two validations later it stops, and again when it is started again."""
    validate = lambda model, step: {"val_loss": (model.weight + 0.3).abs(), "other": 2 + step}
    options = {"validate": validate, "validate_every": 1, "patience": 2, "restore_best": True}
    for _ in range(2):
        weight, history = straight_line(tmp_path / "c.pt", steps=20, **options)
        assert len(history) == 5 and weight == pytest.approx(-0.3, abs=1e-6) and [h["other"] for h in history] == [2, 3, 4, 5, 6]
    straight_line(tmp_path / "d.pt", steps=20, die_at=4, **options)
    assert straight_line(tmp_path / "d.pt", steps=20, **options)[1] == history


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    """The square root of 0 is 0; its slope is not finite."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    with pytest.raises(FloatingPointError, match="grad_norm is (inf|nan) at step 0"):
        trainer.train(
            model, lambda m, i: (m(torch.ones(1, 1)).abs().sqrt().sum(), {}), steps=3, lr=0.1, checkpoint=tmp_path / "c.pt", save_every=1
        )
    assert model.weight.item() == 0 and not (tmp_path / "c.pt").exists()
    with pytest.raises(FloatingPointError, match="validation loss is nan"):
        straight_line(tmp_path / "d.pt", validate=lambda *_: math.nan)


def test_another_precision_in_the_same_process():
    """And the model that comes back is the caller's own, without the autocast that it was trained in."""
    model, x = torch.nn.Linear(8, 8), torch.rand(3, 8)
    for precision in ("bf16", "no"):
        trainer.train(model, lambda m, _: (m(x).float().square().sum(), {}), steps=2, lr=0.1, precision=precision)
        assert torch.equal(model(x), torch.nn.functional.linear(x, model.weight, model.bias))


# ---- what a checkpoint belongs to ------------------------------------------------------------------------------------


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


def test_a_disk_that_is_full_half_way_leaves_the_checkpoint_before(tmp_path):
    """The file system itself refuses the second checkpoint after 20 kB of it."""
    path = tmp_path / "c.pt"
    done = subprocess.run([sys.executable, "-c", FULL, path], capture_output=True, text=True, timeout=120)
    assert f"MESSAGE {path} could not be written; what was there before is untouched" in done.stdout, done.stderr[-2000:]
    assert len(torch.load(path, weights_only=True)["history"]) == 2 and [p.name for p in tmp_path.iterdir()] == ["c.pt"]


# ---- isolated from a caller's own script --------------------------------------------------------------------------------


def tiny(steps=2, **options):
    torch.manual_seed(7)
    x, model = torch.rand(4, 8), torch.nn.Linear(8, 1)
    return trainer.train(model, lambda m, _: (m(x + torch.rand(4, 8)).square().mean(), {}), steps=steps, lr=0.1, **options)


def test_the_callers_accelerator_keeps_its_settings():
    """Another precision and another accumulation of gradients; neither reaches the trainer."""
    plain = tiny()
    mine = Accelerator(mixed_precision="bf16", cpu=True, gradient_accumulation_steps=4)
    layer, x = torch.nn.Linear(8, 8), torch.rand(4, 8)
    assert tiny() == plain
    with mine.autocast():
        assert layer(x).dtype == torch.bfloat16
    assert mine.mixed_precision == "bf16" and mine.gradient_accumulation_steps == 4
    assert Accelerator(cpu=True, gradient_accumulation_steps=4).mixed_precision == "bf16"  # as accelerate shares it
    for state in (mine.state, mine.gradient_state, PartialState()):
        type(state)._shared_state.clear()


def test_training_leaves_no_device_to_the_accelerators_that_follow():
    before = dict(PartialState._shared_state)
    PartialState._shared_state.clear()
    tiny()
    assert PartialState._shared_state == {}
    PartialState._shared_state.update(before)


@pytest.mark.parametrize("fails", [False, True])
def test_the_callers_random_numbers_go_on(fails):
    model, state = torch.nn.Linear(8, 1), torch.get_rng_state()
    loss_fn = lambda m, _: (m(torch.rand(4, 8)).square().mean() * (math.nan if fails else 1), {})
    with pytest.raises(FloatingPointError) if fails else contextlib.nullcontext():
        trainer.train(model, loss_fn, steps=2, lr=0.1)
    assert torch.equal(torch.get_rng_state(), state)


def test_neither_the_callers_seed_nor_its_environment_changes_the_numbers(monkeypatch):
    def numbers(seed):
        torch.manual_seed(0)
        model = torch.nn.Linear(8, 1)
        torch.manual_seed(seed)
        return trainer.train(model, lambda m, _: (m(torch.rand(4, 8)).square().mean(), {}), steps=3, lr=0.1)

    first = numbers(1)
    monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    assert numbers(2) == first


def test_an_error_gives_the_model_back_as_it_was():
    """Without the autocast that it was trained in, and with the caller's random numbers."""
    model, x = torch.nn.Linear(8, 8), torch.rand(3, 8)
    state = torch.get_rng_state()
    with pytest.raises(KeyboardInterrupt):
        trainer.train(model, lambda m, i: (_ for _ in ()).throw(KeyboardInterrupt), steps=2, lr=0.1, precision="bf16")
    assert model(x).dtype == torch.float32 and torch.equal(torch.get_rng_state(), state)


def test_one_process_trains_the_model_where_it_lies():
    class Fixed(torch.nn.Linear):
        def to(self, *args, **kwargs):
            raise AssertionError(f"moved to {args}")

    trainer.train(Fixed(8, 1), lambda m, _: (m(torch.rand(4, 8)).square().mean(), {}), steps=1, lr=0.1)


# ---- what the caller left behind ------------------------------------------------------------------------------------


def line(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(2, 1)


def fitted(model, checkpoint=None, **options):
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    loss = lambda m, _: ((m(x) - 1).square().mean(), {})
    return [r["loss"] for r in trainer.train(model, loss, **{"steps": 4, "lr": 0.1, "checkpoint": checkpoint} | options)]


@pytest.mark.parametrize("precision", ["no", "bf16"])
def test_the_callers_autocast_changes_nothing(precision):
    with torch.autocast("cpu", torch.bfloat16):
        inside = fitted(line(), precision=precision)
        assert torch.is_autocast_enabled("cpu")
    assert inside == fitted(line(), precision=precision) and inside[-1] < inside[0]


def test_a_gradient_that_was_there_before_is_none_of_this_run():
    ill, well = line(), line()
    ill.weight.grad = torch.full_like(ill.weight, float("nan"))
    assert fitted(ill) == fitted(well)
    with pytest.raises(FloatingPointError):
        trainer.train(ill, lambda m, _: (m.weight.sum() * float("inf"), {}), steps=1, lr=0.1)
    assert all(p.grad is None for p in ill.parameters())


def test_two_runs_of_one_folder_keep_their_own_best(tmp_path):
    """Names with a point in them: NAME.best.pt is NAME's."""
    for name in ("lr0.1", "lr0.2"):
        fitted(line(), tmp_path / name, restore_best=True, validate=lambda m, _: 1.0, validate_every=2)
    assert {p.name for p in tmp_path.iterdir()} == {"lr0.1", "lr0.2", "lr0.1.best.pt", "lr0.2.best.pt"}


def test_a_number_of_numpy_can_be_read_again(tmp_path):
    once = fitted(line(), tmp_path / "c.pt", lr=np.logspace(-4, -3, 2)[0])
    assert fitted(line(), tmp_path / "c.pt", lr=np.logspace(-4, -3, 2)[0]) == once


def test_frozen_batch_norms_do_not_move():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2).requires_grad_(False), torch.nn.Linear(2, 1)).eval()
    fitted(model)
    assert model[0].running_mean.tolist() == [0, 0]
