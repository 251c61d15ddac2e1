import pytest
import torch

from icthp import kernels, losses
from test_losses import triplets

TOLERANCE = {torch.float64: 1e-12, torch.float32: 2e-5, torch.bfloat16: 2e-5}  # bf16 input, float32 arithmetic on both sides


def value_and_gradients(function, data, **options):
    inputs = [x.clone().requires_grad_() for x in data[:3]]
    value = function(*inputs, *data[3:], **options)
    value.backward()
    return [value.detach(), *(x.grad for x in inputs)]


@pytest.mark.parametrize("impl", ["gram", "chunked", "auto"])
@pytest.mark.parametrize(("b", "d"), [(1, 8), (2, 3), (17, 8), (130, 33)])
@pytest.mark.parametrize("dtype", TOLERANCE)
def test_equals_the_oracle(impl, b, d, dtype, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 7)  # several uneven blocks
    data = triplets(b, d, dtype)
    for fast, slow in zip(value_and_gradients(kernels.ict_loss, data, impl=impl), value_and_gradients(losses.ict_loss, data)):
        assert fast.dtype == slow.dtype
        assert (fast - slow).norm() <= (1e-2 if slow.dtype == torch.bfloat16 else TOLERANCE[dtype]) * slow.norm() + 1e-12


@pytest.mark.parametrize("beta", [0.1, 6.0])
@pytest.mark.parametrize("groups", [None, torch.arange(17) // 3])
def test_chunked_with_weights_and_groups(beta, groups, monkeypatch):
    monkeypatch.setattr(kernels, "CHUNK", 4)
    data, options = triplets(17, 9), {"beta": beta, "groups": groups}
    fast = value_and_gradients(kernels.ict_loss, data, impl="chunked", **options)
    slow = value_and_gradients(losses.ict_loss, data, **options)
    assert all(torch.allclose(a, b, rtol=1e-10) for a, b in zip(fast, slow))


def test_auto_follows_the_break_even():
    assert kernels.choose(32, 1024, 20, 6, None) == "eager"
    assert kernels.choose(1024, 1024, 20, 6, None) == "gram"
    assert kernels.choose(1024, 1024, 20, 0.06, None) == "eager"
    assert kernels.choose(4096, 1024, 20, 0.06, None) == "chunked"
    assert kernels.choose(4096, 1024, 20, 6, torch.arange(4096)) == "chunked"


def test_gram_refuses_where_it_would_be_wrong():
    data = triplets(4, 8)
    for options in ({"beta": 0.1}, {"groups": torch.zeros(4, dtype=torch.long)}):
        with pytest.raises(ValueError, match="gram"):
            kernels.ict_loss(*data, impl="gram", **options)
    with pytest.raises(ValueError, match="impl must be one of"):
        kernels.ict_loss(*data, impl="fast")


def test_gram_does_less_work():
    """20 b d^2 against 36 b^2 d FLOPs, counted."""
    from torch.utils.flop_counter import FlopCounterMode

    data, count = triplets(256, 32, torch.float32), {}
    for impl in ("eager", "gram"):
        with FlopCounterMode(display=False) as counter:
            value_and_gradients(kernels.ict_loss, data, impl=impl)
        count[impl] = counter.get_total_flops()
    assert count["gram"] < 0.2 * count["eager"]
