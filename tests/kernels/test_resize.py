import itertools

import numpy as np
import pytest
import torch
from PIL import Image

from icthp import images, kernels, preprocessing
from icthp.kernels import resize

SHAPES = [((64, 64), 32), ((37, 91), 24), ((200, 50), 32), ((20, 31), 48), ((31, 20), 20), ((24, 24), 24), ((1, 5), 8), ((512, 300), 33)]
DEVICE = "cuda" if torch.cuda.is_available() else "cpu"


def noise(shape, dtype=torch.float32):
    """Noise overshoots when it is resized, so that clipping to [0, 1] counts."""
    return torch.rand(2, 3, *shape, generator=torch.Generator().manual_seed(sum(shape)), dtype=dtype)


def value_and_gradient(function, pixels, weight):
    pixels = pixels.clone().requires_grad_()
    value = function(pixels)
    return value.detach(), torch.autograd.grad((value * weight).sum(), pixels)[0]


@pytest.mark.parametrize("band", [7, 32, 1000])
@pytest.mark.parametrize(("shape", "size"), SHAPES)
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12)])
def test_equals_the_slow_twin(band, shape, size, dtype, bound, monkeypatch):
    """preprocessing.resize_center_crop under torch's own autograd, then (x - mean) / std."""
    monkeypatch.setattr(resize, "BAND", band)
    resize.bands.cache_clear()
    mean, std, pixels = (0.48, 0.46, 0.41), (0.27, 0.26, 0.28), noise(shape, dtype)
    column = lambda v: torch.tensor(v, dtype=dtype)[:, None, None]
    oracle = lambda x: (preprocessing.resize_center_crop(x, size) - column(mean)) / column(std)
    weight = torch.randn(2, 3, size, size, dtype=dtype)
    slow = value_and_gradient(oracle, pixels, weight)
    fast = value_and_gradient(lambda x: kernels.preprocess(x, size, mean, std), pixels, weight)
    for a, b in zip(fast, slow):
        assert (a - b).abs().max() <= bound * max(1, b.abs().max())


def test_one_direction_is_torchs_own():
    """Where nothing overshoots, two directions are one call of torch's antialiased bicubic kernel."""
    pixels = noise((60, 90)) / 4 + 0.4
    resized = torch.nn.functional.interpolate(pixels, (20, 30), mode="bicubic", antialias=True)
    assert (kernels.preprocess(pixels, 20) - resized[..., 5:25]).abs().max() <= 1e-6


def test_bytes_are_resized_as_pillow_does():
    pixels = (noise((150, 90)) * 255).byte()
    ours = kernels.preprocess(pixels, 40) * 255
    for image, row in zip(pixels, ours):
        pillow = Image.fromarray(image.permute(1, 2, 0).numpy()).resize((40, 66), Image.Resampling.BICUBIC)
        assert (images.read(pillow)[:, 13:53] - row).abs().max() <= 1 + 1e-4
    assert (kernels.preprocess(pixels.float() / 255, 40) * 255 - ours).abs().max() <= 1.5


def test_bfloat16_within_its_rounding():
    """torch's own kernel has no bfloat16 on a CPU; products with a matrix have."""
    pixels = noise((90, 70))
    exact = kernels.preprocess(pixels, 32)
    assert (kernels.preprocess(pixels.bfloat16(), 32).float() - exact).abs().max() <= 2e-2


def test_gradients_are_deterministic():
    pixels, weight = noise((90, 70)).to(DEVICE), torch.randn(2, 3, 32, 32, device=DEVICE)
    gradients = [value_and_gradient(lambda x: kernels.preprocess(x, 32), pixels, weight)[1] for _ in range(3)]
    assert all(torch.equal(gradients[0], g) for g in gradients[1:])


def test_gradient_is_the_derivative():
    pixels = noise((9, 7), torch.float64).requires_grad_()
    assert torch.autograd.gradcheck(lambda x: kernels.preprocess(x, 5, [0.5] * 3, [0.2] * 3), pixels)


def test_autocast_does_not_reach_it():
    pixels, weight = noise((90, 70)), torch.randn(2, 3, 32, 32)
    exact = value_and_gradient(lambda x: kernels.preprocess(x, 32), pixels, weight)
    with torch.autocast("cpu", torch.bfloat16):
        inside = value_and_gradient(lambda x: kernels.preprocess(x, 32), pixels, weight)
    assert all(torch.equal(a, b) for a, b in zip(exact, inside))


@pytest.mark.parametrize("filter", ["bicubic", "bilinear"])
@pytest.mark.parametrize(("n", "out"), [(1024, 224), (768, 224), (64, 64), (37, 91), (200, 32), (5, 40), (91, 59), (7, 1), (1, 9)])
def test_the_taps_are_torchs_own(filter, n, out):
    """torch's resizing of the identity matrix; only the rows that are kept, only the columns that they need."""
    expected = torch.nn.functional.interpolate(torch.eye(n)[None, None], (out, n), mode=filter, antialias=True)[0, 0]
    for start, stop in ((0, out), (out // 3, out - out // 3)):
        first, matrix = resize.rows(preprocessing.Axis(n, out, start, stop), filter, torch.float32)
        assert (matrix - expected[start:stop, first : first + matrix.shape[1]]).abs().max() <= 2e-7
        assert expected[start:stop].abs().sum() == pytest.approx(matrix.abs().sum().item(), rel=1e-5)
    first, matrix = resize.rows(preprocessing.Axis(100_000, 22_400_000, 11_200_000, 11_200_224), filter, torch.float32)
    assert matrix.shape[1] < 16 and (matrix.sum(1) - 1).abs().max() < 1e-4 and first > 49_000


CONFIGS = [
    preprocessing.Preprocessing((24, 40), "squash", "bilinear"),
    preprocessing.Preprocessing((24, 40), "longest", fill=0.3),
    preprocessing.Preprocessing((40, 24), "longest", "bilinear", 1.0, clipped=False),
    preprocessing.Preprocessing((24, 24), resize=(30, 30)),
    preprocessing.Preprocessing((32, 32), "none", like="transformers"),
    preprocessing.Preprocessing((30, 20), "shortest"),
]


@pytest.mark.parametrize("config", CONFIGS, ids=str)
@pytest.mark.parametrize("shape", [(64, 64), (37, 91), (200, 50), (20, 31), (9, 7)])
@pytest.mark.parametrize(("dtype", "bound"), [(torch.float32, 1e-6), (torch.float64, 1e-12), (torch.bfloat16, 2e-2)])
def test_every_preprocessing_equals_its_slow_twin(config, shape, dtype, bound):
    upcast = torch.float32 if dtype == torch.bfloat16 else dtype
    pixels = noise(shape, upcast)
    weight = torch.randn(2, 3, *config.size, generator=torch.Generator().manual_seed(0), dtype=upcast)
    exact = value_and_gradient(lambda x: preprocessing.resize_center_crop(x, config), pixels, weight)
    fast = value_and_gradient(lambda x: kernels.preprocess(x, config).to(upcast), pixels.to(dtype), weight)
    assert fast[0].shape[-2:] == config.size
    assert (fast[0] - exact[0]).abs().max() <= bound
    if dtype != torch.bfloat16:  # rounding moves values over the clipping bounds, and gradients jump
        assert (fast[1] - exact[1]).abs().max() <= bound * max(1, exact[1].abs().max())


@pytest.mark.parametrize("filter", [Image.Resampling.BICUBIC, Image.Resampling.BILINEAR])
def test_the_order_of_directions_is_pillows(filter):
    """The plan's order gives Pillow's own bytes, in two steps of one direction each."""
    random, sides = np.random.default_rng(0), (40, 60, 90, 130, 200)
    for h, w, new_h, new_w in itertools.product(sides, sides, (30, 50, 120), (30, 50, 120)):
        image = Image.fromarray(random.integers(0, 256, (h, w, 3), dtype=np.uint8))
        first = preprocessing.plan(preprocessing.Preprocessing((new_h, new_w), "squash"), h, w).order[0]
        steps = image.resize((w, new_h) if first == 0 else (new_w, h), filter).resize((new_w, new_h), filter)
        assert np.array_equal(np.asarray(steps), np.asarray(image.resize((new_w, new_h), filter))), (h, w, new_h, new_w)
