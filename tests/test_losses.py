import math

import pytest
import torch
import torch.nn.functional as F

from icthp import kernels, losses


def triplets(b, d, dtype=torch.float64, seed=0):
    g = torch.Generator().manual_seed(seed)
    unit = lambda *shape: F.normalize(torch.randn(*shape, d, generator=g, dtype=torch.float64), dim=-1).to(dtype)
    return unit(3, b), unit(b), unit(b), *torch.rand(2, b, 3, generator=g, dtype=torch.float64).to(dtype)


def by_hand(images, easy, refined, easy_labels, refined_labels, neg_lambda, alpha, beta, groups):
    """The definition, one pair at a time."""
    total, b = 0.0, len(easy)
    for text, labels in ((easy, easy_labels), (refined, refined_labels)):
        matched, negative = [], []
        for i in range(3):
            for v in range(b):
                for t in range(b):
                    c = float(images[i, v] @ text[t])
                    if v == t:
                        matched.append((c - float(labels[v, i])) ** 2)
                    elif groups is None or groups[v] != groups[t]:
                        negative.append(c * c / (1 + math.exp(alpha * (abs(c) - beta))))
        total += sum(matched) / len(matched) + neg_lambda * (sum(negative) / len(negative) if negative else 0)
    return total


@pytest.mark.parametrize("b", [1, 2, 5])
@pytest.mark.parametrize("groups", [False, True])
@pytest.mark.parametrize("beta", [6.0, 0.1])
def test_ict_loss_is_its_definition(b, groups, beta):
    data = triplets(b, 7)
    ids = torch.arange(b) // 2 if groups else None
    expected = by_hand(*data, 0.5, 20.0, beta, ids)
    assert losses.ict_loss(*data, beta=beta, groups=ids).item() == pytest.approx(expected, rel=1e-10)


def test_ict_loss_gradient():
    images, easy, refined, a, b = triplets(3, 4)
    inputs = [x.requires_grad_() for x in (images, easy, refined)]
    assert torch.autograd.gradcheck(lambda *x: losses.ict_loss(*x, a, b, beta=0.3), inputs)


def test_half_precision_is_computed_in_float32():
    data = triplets(9, 16)
    exact = losses.ict_loss(*data)
    rounded = [x.to(torch.bfloat16) for x in data]
    half = losses.ict_loss(*rounded)
    assert half.dtype == torch.float32 and half.item() == pytest.approx(losses.ict_loss(*(x.float() for x in rounded)).item(), rel=1e-6)
    assert half.item() == pytest.approx(exact.item(), rel=0.03)


def test_autocast_does_not_reach_the_losses():
    data, hp = triplets(9, 16), torch.rand(9, 3)
    exact = losses.ict_loss(*data), losses.hp_loss(hp), kernels.ict_loss(*data, impl="gram"), kernels.ict_loss(*data, impl="chunked")
    with torch.autocast("cpu", torch.bfloat16):
        inside = losses.ict_loss(*data), losses.hp_loss(hp), kernels.ict_loss(*data, impl="gram"), kernels.ict_loss(*data, impl="chunked")
    assert exact == inside


def test_labels_follow_the_paper():
    easy, refined = losses.ict_labels(torch.tensor([0.2, 0.9]), torch.tensor([0.3, 0.4]), torch.tensor([0.8, 0.5]), theta=0.5)
    assert torch.allclose(easy, torch.tensor([[0.4, 0.6, 1.0], [0.8, 0.8, 1.0]]))  # E1 = min(C1, E2)
    assert torch.allclose(refined, torch.tensor([[0.32, 0.48, 1.0], [0.4, 0.4, 1.0]]))


def test_released_negative_weight_is_one_everywhere():
    """criterions/icthp_criterion.py:86-89: threshold 6 and sharpness 20 on raw cosines never weigh anything."""
    cosine = torch.linspace(-1, 1, 2001, dtype=torch.float64)
    for dtype in (torch.float64, torch.float32, torch.bfloat16):
        assert (losses.negative_weight(cosine.to(dtype), 20, 6) == 1).all()


def test_negative_weight_closed_form():
    cosine = torch.tensor([-0.9, -0.06, 0.0, 0.06, 0.9], dtype=torch.float64)
    expected = 1 / (1 + torch.exp(20 * (cosine.abs() - 0.06)))
    assert torch.allclose(losses.negative_weight(cosine, 20, 0.06), expected)


def test_hp_loss_by_hand():
    hp = torch.tensor([[0.1, 0.2, 0.9], [0.5, 0.4, 0.3]])
    assert losses.hp_loss(hp, 0.3).item() == pytest.approx(((0.2 + 0) + (0.4 + 0.4)) / 2)
    assert losses.hp_loss(torch.zeros(256, 3)).item() == pytest.approx(0.6)


def released_inputs():
    """Five rows that a formula makes: unit features (images I1, I2, I3, easy, refined), labels by the paper, raw HP scores (5, 3)."""
    n = torch.arange(1, 201, dtype=torch.float64)
    features = F.normalize(((1.7 * n).sin() + (0.37 * n).cos()).view(5, 5, 8), dim=-1).float()
    clip_1, clip_2, text_sim = (0.9 * torch.arange(15, dtype=torch.float64)).sin().abs().float().view(3, 5)
    hp = (2.3 * torch.arange(15, dtype=torch.float64)).sin().float().view(3, 5).T
    return features[:3], *features[3:], *losses.ict_labels(clip_1, clip_2, text_sim, theta=1.0), hp


def test_the_released_criterion_gives_these_numbers():
    """Computed once with the released criterion, commit bd5769f, in its bfloat16: the ICT loss is rounded to 1/128 at 2."""
    *data, hp = released_inputs()
    images = data[0].requires_grad_()
    loss = losses.ict_loss(*data, beta=6.0, rounded=True)
    loss.backward()
    assert loss.item() == pytest.approx(2.140625, rel=4e-3)
    assert images.grad[0, 0, :3].tolist() == pytest.approx([0.0691230, 0.0512992, -0.0057497], rel=2e-2)
    data[3][:, 1] = data[4][:, 0]  # the released loader fills E2 from R1
    assert losses.ict_loss(*data, beta=6.0, rounded=True).item() == pytest.approx(1.796875, rel=4e-3)
    assert losses.hp_loss(hp).item() == pytest.approx(1.0714728832, rel=1e-6)


def test_the_released_icthp_gives_these_numbers():
    """The same criterion: softmax over the triplet, a sum over the batch, through bfloat16 cosines."""
    *data, hp = released_inputs()
    cosines = (data[0] * data[1]).sum(-1).T
    loss = losses.icthp_loss(cosines, hp.requires_grad_(), activation="softmax", reduction="sum")
    loss.backward()
    assert loss.item() == pytest.approx(2.9728353, rel=2e-3)
    gradient = [[-0.0249874, -0.0323425, -0.0097959, -0.0157475, -0.0193034], [0.0189098, -0.0142610, -0.0147624, 0.0224072, -0.0256504],
                [0.0060776, 0.0466034, 0.0245582, -0.0066597, 0.0449538]]  # fmt: skip
    assert torch.allclose(hp.grad.T, torch.tensor(gradient), atol=4e-4)


def test_released_icthp_outweighs_hp_by_the_batch():
    """0.600 against about 152 at the start: one is a mean, the other a sum."""
    ict, hp = torch.zeros(256, 3), torch.zeros(256, 3)
    assert losses.icthp_loss(ict, hp, activation="softmax", reduction="sum").item() == pytest.approx(0.6 * 256, rel=1e-5)
    assert losses.icthp_loss(ict, hp).item() == pytest.approx(0.6)
    with pytest.raises(ValueError, match="activation must be"):
        losses.icthp_loss(ict, hp, activation="tanh")


def test_preference_loss_is_the_cross_entropy_of_each_pair():
    scores = torch.randn(7, 3, generator=torch.Generator().manual_seed(0))
    pairs = [F.cross_entropy(scores[:, [better, worse]], torch.zeros(7, dtype=torch.long)) for worse, better in ((0, 1), (1, 2))]
    assert losses.preference_loss(scores).item() == pytest.approx(sum(pairs).item(), rel=1e-6)


def test_uncertain_loss_is_thurstones_probability():
    """Against the simulated fraction of draws in which the better picture scores higher; a wide variance brings it to log 2."""
    mean, log_variance = torch.tensor([[0.0, 0.5, 2.0]], dtype=torch.float64), torch.tensor([[-1.0, 0.3, 0.7]], dtype=torch.float64)
    draws = mean + (log_variance / 2).exp() * torch.randn(400_000, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    simulated = -sum((draws[:, i + 1] > draws[:, i]).double().mean().log() for i in range(2))
    assert losses.uncertain_loss(mean, log_variance).item() == pytest.approx(simulated.item(), abs=5e-3)
    assert losses.uncertain_loss(-mean, torch.full((1, 3), 20.0)).item() == pytest.approx(2 * math.log(2), abs=1e-3)
    inputs = mean.clone().requires_grad_(), log_variance.requires_grad_()
    assert torch.autograd.gradcheck(losses.uncertain_loss, inputs)


@pytest.mark.parametrize("loss", [losses.hp_loss, losses.preference_loss])
def test_margin_and_preference_gradients(loss):
    scores = torch.randn(6, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    assert torch.autograd.gradcheck(loss, scores.requires_grad_())


def test_theta_must_be_positive():
    with pytest.raises(ValueError, match="theta must be positive"):
        losses.ict_labels(torch.ones(1), torch.ones(1), torch.ones(1), theta=0)


# ---- shapes ----------------------------------------------------------------------------------------------------------


def by_name(data) -> dict:
    """The arguments of ict_loss."""
    return dict(zip(("image_features", "easy", "refined", "easy_labels", "refined_labels"), data))


ICT_LOSSES = [losses.ict_loss, kernels.ict_loss, kernels.sharded_ict_loss]


@pytest.mark.parametrize("loss", ICT_LOSSES)
@pytest.mark.parametrize("b", [1, 5])
@pytest.mark.parametrize("wrong", [
    {"image_features": lambda x: x.transpose(0, 1)}, {"image_features": lambda x: x[:2]},
    {"easy": lambda x: x[:, :-1]}, {"refined": lambda x: x.T},
    {"refined": lambda x: x[None]}, {"easy_labels": lambda x: x.T}, {"refined_labels": lambda x: x[..., None]}])  # fmt: skip
def test_the_ict_losses_refuse_other_shapes(loss, b, wrong):
    """One triplet's (3, 1) labels would broadcast to nonsense in silence."""
    name, change = next(iter(wrong.items()))
    data = by_name(triplets(b, 8))
    data[name] = change(data[name])
    with pytest.raises(ValueError, match=rf"(image_features|{name}) must have the shape \(.*\).*, not \("):
        loss(**data)


@pytest.mark.parametrize("loss", ICT_LOSSES)
def test_the_ict_losses_refuse_groups_of_another_length(loss):
    for length in (1, 4, 6):  # one would broadcast
        with pytest.raises(ValueError, match=rf"groups must have the shape \(b\), b = 5, not \({length},\)"):
            loss(*triplets(5, 8), groups=torch.ones(length, dtype=torch.long))


PAIR_LOSSES = {
    "hp": losses.hp_loss, "scores": losses.preference_loss, "mean": lambda x: losses.uncertain_loss(x, x),
    "ict": lambda x: losses.icthp_loss(x, x)}  # fmt: skip


@pytest.mark.parametrize("name", PAIR_LOSSES)
def test_the_other_losses_refuse_scores_that_are_not_three_a_row(name):
    for shape in ((3, 5), (5, 1, 3), (5, 4), (3,), (5,), ()):
        with pytest.raises(ValueError, match=rf"{name} must have the shape \(b, 3\)"):
            PAIR_LOSSES[name](torch.rand(shape))
    assert PAIR_LOSSES[name](torch.rand(5, 3)).shape == ()


def test_two_tensors_of_a_loss_have_one_batch():
    ict, hp = torch.rand(5, 3), torch.rand(4, 3)
    with pytest.raises(ValueError, match=r"hp must have the shape \(b, 3\), b = 5, not \(4, 3\)"):
        losses.icthp_loss(ict, hp)
    with pytest.raises(ValueError, match=r"log_variance must have the shape \(b, 3\), b = 5, not \(1, 3\)"):
        losses.uncertain_loss(ict, hp[:1])
    images, easy, *_ = triplets(5, 8)
    with pytest.raises(ValueError, match="text must have"):
        losses.matched_loss(images, easy[:1], torch.rand(5, 3))
    with pytest.raises(ValueError, match="image_features must have"):
        losses.mismatched_loss(images[0], easy, 20.0, 6.0)


def test_an_empty_batch_is_refused():
    """Its mean is NaN, and a sum of nothing trains nothing."""
    for loss in PAIR_LOSSES.values():
        with pytest.raises(ValueError, match="empty batch"):
            loss(torch.rand(0, 3))
    for loss in ICT_LOSSES:
        with pytest.raises(ValueError, match="empty batch"):
            loss(*triplets(0, 8))


def test_labels_are_made_of_columns():
    clip_1, clip_2, text_sim = torch.rand(3, 5)
    for columns in ((clip_1[:, None], clip_2, text_sim), (clip_1, clip_2[:1], text_sim), (clip_1, clip_2, text_sim[:, None])):
        with pytest.raises(ValueError, match="must have the shape"):
            losses.ict_labels(*columns, theta=1.0)
    assert losses.ict_labels(clip_1[:0], clip_2[:0], text_sim[:0], theta=1.0)[0].shape == (0, 3)


def test_losses_take_their_tensors_by_name():
    hp, data = torch.rand(5, 3), triplets(5, 8)
    assert losses.hp_loss(hp=hp) == losses.hp_loss(hp) and losses.preference_loss(scores=hp) == losses.preference_loss(hp)
    assert losses.uncertain_loss(log_variance=hp, mean=hp) == losses.uncertain_loss(hp, hp)
    assert all(loss(**by_name(data)) == loss(*data) for loss in ICT_LOSSES)


def test_the_product_is_computed_in_float32():
    """bfloat16 scores: the same as of their float32 values, not of a product rounded to 8 bits."""
    ict, hp = (torch.rand(50, 3, generator=torch.Generator().manual_seed(i)).bfloat16() for i in (0, 1))
    for activation in ("sigmoid", "softmax"):
        assert losses.icthp_loss(ict, hp, activation=activation) == losses.icthp_loss(ict.float(), hp.float(), activation=activation)
