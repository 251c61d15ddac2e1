"""The playground's pictures, prompts, scores, and its table of scores."""

import pytest
import torch
import torch.nn.functional as F

from icthp.microworld import captions, held_out, parse, playground, render
from icthp.scorers import Scorer


class Brightness(Scorer):
    """The mean pixel, plus a hundred for each letter of the prompt."""

    def forward(self, pixels, prompts=None):
        return pixels.mean((1, 2, 3)) + torch.tensor([100.0 * len(prompt) for prompt in prompts])


@pytest.fixture(scope="module")
def scene():
    return playground.first_held_out((0, 1, 0))


@pytest.fixture(scope="module")
def renders(scene):
    return playground.level_renders(scene, size=16)


def at(renders, *point):
    return playground.pictures(renders, torch.tensor([point]))[0]


# ---- scenes and prompts -----------------------------------------------------------------------------------------


def test_scenes_are_held_out_and_so_many_of_each_kind():
    scenes = playground.first_held_out((2, 1, 3), seed=5)
    assert scenes.latents["kind"].tolist() == [0, 0, 1, 2, 2, 2] and held_out(scenes).all()
    assert torch.equal(scenes.latents["x"], playground.first_held_out((2, 1, 3), seed=5).latents["x"])


def test_a_wrong_prompt_differs_from_the_short_one_in_the_first_colour_alone():
    scenes = playground.first_held_out((3, 3, 2))
    for i in range(len(scenes)):
        prompts = playground.prompts_by_style(scenes[i : i + 1])
        assert list(prompts) == list(playground.STYLES)
        short, wrong = (parse([prompts[style]], torch.Generator().manual_seed(0)) for style in ("short", "wrong"))
        same = {name for name in short.latents if torch.equal(short.latents[name], wrong.latents[name])}
        assert set(short.latents) - same == {"colour_a"}
        assert prompts["long"] == captions(scenes[i : i + 1].at(1), "long")[0] and ", " in prompts["long"]


# ---- pictures ---------------------------------------------------------------------------------------------------


def test_at_each_level_the_clean_picture_is_the_render(scene, renders):
    for level in range(9):
        expected = render(scene.at(level / 8), 16)[0]
        torch.testing.assert_close(at(renders, level / 8, 0.0, 0.0), expected, atol=0.5 / 255 + 1e-6, rtol=0)


def test_between_two_levels_the_next_layer_fades_in(renders):
    torch.testing.assert_close(at(renders, 2.25 / 8, 0.0, 0.0), 0.75 * renders[2] + 0.25 * renders[3])


def test_blur_goes_from_the_sharp_picture_to_the_averaged_one(renders):
    coarse = F.interpolate(F.avg_pool2d(renders[8][None], 4), 16, mode="bilinear")[0]
    torch.testing.assert_close(at(renders, 1.0, 0.0, 1.0), coarse)
    torch.testing.assert_close(at(renders, 1.0, 0.0, 0.25), 0.75 * renders[8] + 0.25 * coarse)


def test_noise_has_its_deviation_is_a_byte_and_is_not_blurred():
    field = playground.noise_field()
    assert torch.equal(field * 32, (field * 32).round()) and field.abs().max() <= 127 / 32
    assert field.std() == pytest.approx(1, abs=0.02) and field.mean() == pytest.approx(0, abs=0.02)
    grey = torch.full((9, 3, 64, 64), 0.5)
    for blur in (0.0, 1.0):
        noisy = at(grey, 0.3, 0.4, blur)
        torch.testing.assert_close(noisy, (0.5 + 0.4 * playground.NOISE * field).clamp(0, 1))


def test_pictures_of_many_points_are_those_of_each(renders):
    points = torch.rand(7, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    together = playground.pictures(renders, points)
    assert together.shape == (7, 3, 16, 16) and together.min() >= 0 and together.max() <= 1
    torch.testing.assert_close(together, torch.cat([playground.pictures(renders, point[None]) for point in points]))


@pytest.mark.parametrize("point", [(1.01, 0.0, 0.0), (0.5, -0.1, 0.0)])
def test_a_point_outside_is_refused(renders, point):
    with pytest.raises(ValueError, match="richness, noise and blur lie in"):
        at(renders, *point)


# ---- scores -----------------------------------------------------------------------------------------------------


def test_scores_are_those_of_each_picture_with_each_prompt(renders):
    found = playground.scores({"a": Brightness(), "b": Brightness()}, renders[:2], ["x", "yyy"])
    expected = renders[:2].mean((1, 2, 3))[:, None] + torch.tensor([100.0, 300.0])
    torch.testing.assert_close(found, expected[..., None].expand(2, 2, 2))


def test_norms_are_mean_and_deviation_over_clean_pictures_with_their_own_prompts():
    class Length(Scorer):
        def forward(self, pixels, prompts=None):
            return torch.tensor([float(len(prompt)) for prompt in prompts])

    scenes = playground.sample(32, torch.Generator().manual_seed(1))
    lengths = torch.tensor([float(len(text)) for text in captions(scenes)])
    assert playground.score_norms({"length": Length()}, 32)["length"] == pytest.approx((lengths.mean().item(), lengths.std().item()))


# ---- the table --------------------------------------------------------------------------------------------------

AXES = ([0.0, 0.25, 1.0], [0.0, 0.5, 1.0], [0.0, 1.0])


def test_a_multilinear_function_is_interpolated_exactly():
    points = playground.grid_points(AXES)
    function = lambda p: torch.stack([1 + p[:, 0] * p[:, 1] - 3 * p.prod(1), p[:, 2] - 2 * p[:, 1] * p[:, 2]], -1)
    values = function(points).view(3, 3, 2, 2)
    between = torch.rand(50, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    torch.testing.assert_close(playground.interpolate(values, AXES, between), function(between))
    torch.testing.assert_close(playground.interpolate(values, AXES, points), function(points))


def test_points_outside_of_the_stops_are_refused():
    with pytest.raises(ValueError, match="points lie between 0 and 1"):
        playground.interpolate(torch.zeros(3, 3, 2), AXES, torch.tensor([[0.5, 1.5, 0.5]]))
