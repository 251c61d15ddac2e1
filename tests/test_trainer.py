"""The training loop: schedule, batches, gradients, the average of the weights, validation."""

import math

import pytest
import torch

from icthp import trainer


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


def line(seed=0):
    torch.manual_seed(seed)
    return torch.nn.Linear(2, 1)


def fitted(model, checkpoint=None, **options):
    x = torch.tensor([[1.0, 2.0], [0.5, -1.0]])
    loss = lambda m, _: ((m(x) - 1).square().mean(), {})
    return [r["loss"] for r in trainer.train(model, loss, **{"steps": 4, "lr": 0.1, "checkpoint": checkpoint} | options)]


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_batch_and_leaves_the_checkpoint(tmp_path, bad):
    model = torch.nn.Linear(1, 1)
    loss_fn = lambda m, step: ((m(torch.ones(1, 1)) - 3).square().sum() * (bad if step == 5 else 1), {})
    message = r"loss is (nan|inf) at step 5; lower the learning rate 0.1, or look at this batch, prompt_id \[50, 51\]"
    with pytest.raises(FloatingPointError, match=message):
        trainer.train(
            model, loss_fn, steps=9, lr=0.1, checkpoint=tmp_path / "c.pt", save_every=2, prompt_ids=lambda i: [10 * i, 10 * i + 1]
        )
    assert all(p.isfinite().all() for p in model.parameters())
    assert len(torch.load(tmp_path / "c.pt", weights_only=True)["history"]) == 4


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


def test_one_process_trains_the_model_where_it_lies():
    class Fixed(torch.nn.Linear):
        def to(self, *args, **kwargs):
            raise AssertionError(f"moved to {args}")

    trainer.train(Fixed(8, 1), lambda m, _: (m(torch.rand(4, 8)).square().mean(), {}), steps=1, lr=0.1)


def test_a_gradient_that_was_there_before_is_none_of_this_run():
    ill, well = line(), line()
    ill.weight.grad = torch.full_like(ill.weight, float("nan"))
    assert fitted(ill) == fitted(well)
    with pytest.raises(FloatingPointError):
        trainer.train(ill, lambda m, _: (m.weight.sum() * float("inf"), {}), steps=1, lr=0.1)
    assert all(p.grad is None for p in ill.parameters())


def test_frozen_batch_norms_do_not_move():
    model = torch.nn.Sequential(torch.nn.BatchNorm1d(2).requires_grad_(False), torch.nn.Linear(2, 1)).eval()
    fitted(model)
    assert model[0].running_mean.tolist() == [0, 0]
