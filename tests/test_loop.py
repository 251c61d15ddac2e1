import math

import pytest
import torch

from icthp.loop import batch_indices, fit, learning_rate


def run(path=None, die_at=None, steps=9, lr=0.1, noise=0.0):
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(4, 8), torch.nn.Dropout(0.5), torch.nn.Linear(8, 1))

    def loss_at(model, step):
        if step == die_at:
            raise KeyboardInterrupt
        x = torch.randn(16, 4) + noise
        return (model(x) - x.sum(1, keepdim=True)).square().mean(), {"first": x[0, 0].item()}

    try:
        history = fit(model, loss_at, steps=steps, lr=lr, warmup=2, checkpoint=path, save_every=2)
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


def test_a_checkpoint_of_another_recipe_is_refused(tmp_path):
    run(tmp_path / "c.pt")
    with pytest.raises(ValueError, match="delete it to start again"):
        run(tmp_path / "c.pt", lr=0.2)


def test_a_checkpoint_of_other_data_is_refused(tmp_path):
    run(tmp_path / "c.pt")
    with pytest.raises(ValueError, match="c.pt began with loss .* delete it to start again"):
        run(tmp_path / "c.pt", noise=0.5)


def test_a_checkpoint_holds_what_trains(tmp_path):
    model = torch.nn.Sequential(torch.nn.Linear(2, 2).requires_grad_(False), torch.nn.Linear(2, 1))
    fit(model, lambda m, step: (m(torch.ones(1, 2)).sum().square(), {}), steps=2, lr=0.1, checkpoint=tmp_path / "c.pt")
    assert set(torch.load(tmp_path / "c.pt", weights_only=True)["model"]) == {"1.weight", "1.bias"}


@pytest.mark.parametrize("bad", [math.nan, math.inf])
def test_a_loss_that_is_not_finite_names_the_batch_and_leaves_the_checkpoint(tmp_path, bad):
    model = torch.nn.Linear(1, 1)
    loss_at = lambda m, step: ((m(torch.ones(1, 1)) - 3).square().sum() * (bad if step == 5 else 1), {})
    says = r"loss is (nan|inf) at step 5; lower the learning rate 0.1, or look at this batch, prompt_id \[50, 51\]"
    with pytest.raises(FloatingPointError, match=says):
        fit(model, loss_at, steps=9, lr=0.1, checkpoint=tmp_path / "c.pt", save_every=2, batch=lambda step: [10 * step, 10 * step + 1])
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
        fit(torch.nn.Linear(1, 1), lambda m, step: (m(torch.ones(1, 1)).sum(), {}), steps=2, lr=1.0)


def test_batches_show_every_row_once_an_epoch():
    rows = torch.cat([batch_indices(step, n=10, size=4) for step in range(5)])
    assert sorted(rows[:10].tolist()) == sorted(rows[10:].tolist()) == list(range(10))
    assert rows[:10].tolist() != rows[10:].tolist()
    assert torch.equal(batch_indices(3, n=10, size=4), batch_indices(3, n=10, size=4))
    assert len(batch_indices(0, n=3, size=8)) == 8  # a table smaller than the batch


def test_learning_rate_closed_form():
    at = lambda step, **k: learning_rate(step, steps=110, peak=2.0, warmup=10, **k)
    assert [at(0), at(9), at(10)] == [0.2, 2.0, 2.0]
    assert at(60) == pytest.approx(1.0) and at(35) == pytest.approx(1 + math.cos(math.pi / 4))
    assert at(60, schedule="linear") == 1.0 and at(109, schedule="constant") == 2.0
    with pytest.raises(ValueError, match="schedule"):
        at(60, schedule="step")


def slope(path=None, steps=6, die_at=None, **options):
    """One weight, the loss 2 w: with plain steps a straight line. Returns (final weight, history)."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)

    def loss_at(model, i):
        if i == die_at:
            raise KeyboardInterrupt
        return (model(torch.ones(1, 1)) * (1 + i % 2)).sum(), {"i": i}

    options = {"lr": 0.1, "schedule": "constant", "weight_decay": 0, "checkpoint": path, "save_every": 1} | options
    try:
        history = fit(model, loss_at, steps=steps, **options)
    except KeyboardInterrupt:
        return None, None
    return model.weight.item(), history


def test_accumulated_batches_are_one_step_of_their_mean():
    weight, history = slope(accumulate=2, clip=1e9)
    assert [row["grad_norm"] for row in history] == pytest.approx([1.5] * 6)  # the mean of 1 and 2
    assert [row["i"] for row in history] == [0.5, 2.5, 4.5, 6.5, 8.5, 10.5] and weight == pytest.approx(-0.6, abs=1e-6)


def test_the_average_of_the_weights_is_what_remains(tmp_path):
    """diffusers' schedule of the decay: 0 at the first step, then (1 + n) / (10 + n) at most `ema`; killed in between or not."""
    weight, _ = slope()
    average, plain = 0.0, 0.0
    for n in range(6):
        plain -= 0.1
        decay = min((1 + n) / (10 + n), 0.3) if n else 0.0
        average = decay * average + (1 - decay) * plain
    assert weight == pytest.approx(-0.6, abs=1e-6)
    whole, _ = slope(ema=0.3)
    slope(tmp_path / "c.pt", ema=0.3, die_at=4)
    assert slope(tmp_path / "c.pt", ema=0.3)[0] == whole == pytest.approx(average, abs=1e-6)


def test_the_best_weights_are_kept(tmp_path):
    """Validation is lowest at w = -0.3, after three of six steps; every second step is judged, so step four's are the best."""
    judge = lambda model, _: (model.weight + 0.35).abs().item()
    options = {"validate": judge, "validate_every": 2}
    weight, history = slope(tmp_path / "c.pt", keep="best", **options)
    assert weight == pytest.approx(-0.4, abs=1e-6) and [h.get("val_loss") is not None for h in history] == [False, True] * 3
    assert torch.load(tmp_path / "c.best.pt", weights_only=True)["weight"].item() == pytest.approx(-0.4, abs=1e-6)
    assert torch.load(tmp_path / "c.pt", weights_only=True)["model"]["weight"].item() == pytest.approx(-0.6, abs=1e-6)
    assert slope(tmp_path / "d.pt", **options)[0] == pytest.approx(-0.6, abs=1e-6)
    with pytest.raises(ValueError, match="keep must be"):
        slope(keep="best")


def test_patience_stops_the_run_and_it_stays_stopped(tmp_path):
    """Lowest after the third step; two validations later it stops, and again when it is started again."""
    judge = lambda model, step: {"val_loss": (model.weight + 0.3).abs(), "other": 2 + step}
    options = {"validate": judge, "validate_every": 1, "patience": 2, "keep": "best"}
    for _ in range(2):
        weight, history = slope(tmp_path / "c.pt", steps=20, **options)
        assert len(history) == 5 and weight == pytest.approx(-0.3, abs=1e-6) and [h["other"] for h in history] == [2, 3, 4, 5, 6]
    slope(tmp_path / "d.pt", steps=20, die_at=4, **options)
    assert slope(tmp_path / "d.pt", steps=20, **options)[1] == history


def test_a_gradient_that_is_not_finite_stops_before_the_weights_change(tmp_path):
    """The square root of 0 is 0; its slope is not finite."""
    model = torch.nn.Linear(1, 1, bias=False)
    torch.nn.init.zeros_(model.weight)
    with pytest.raises(FloatingPointError, match="grad_norm is (inf|nan) at step 0"):
        fit(model, lambda m, i: (m(torch.ones(1, 1)).abs().sqrt().sum(), {}), steps=3, lr=0.1, checkpoint=tmp_path / "c.pt", save_every=1)
    assert model.weight.item() == 0 and not (tmp_path / "c.pt").exists()
    with pytest.raises(FloatingPointError, match="validation loss is nan"):
        slope(tmp_path / "d.pt", validate=lambda *_: math.nan)


def test_another_precision_in_the_same_process():
    """And the model that comes back is the caller's own, without the autocast that it was trained in."""
    model, x = torch.nn.Linear(8, 8), torch.rand(3, 8)
    for precision in ("bf16", "no"):
        fit(model, lambda m, _: (m(x).float().square().sum(), {}), steps=2, lr=0.1, precision=precision)
        assert torch.equal(model(x), torch.nn.functional.linear(x, model.weight, model.bias))
