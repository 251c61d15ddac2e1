"""What a batch of triplets teaches: the losses of ICT, HP and their controls as functions of the model in training."""

from collections.abc import Callable

import torch
from accelerate import PartialState
from torch import Tensor, nn

from icthp import kernels, losses
from icthp.corruptions import corrupt, sample_severities
from icthp.data.triplets import Triplets
from icthp.scorers.clip import ClipScorer

# loss(model, rows, groups, is_shared) of a batch or of this process's part of it. groups (b,): equal numbers for equal prompts, None where
# every prompt is another; is_shared: each process takes a part.
BatchLoss = Callable[[nn.Module, Tensor, Tensor | None, bool], Tensor]


def ict_loss(scorer: ClipScorer, data: Triplets, labels: tuple[Tensor, Tensor], near_lambda: float, **options) -> BatchLoss:
    """losses.ict_loss with its options; for near_lambda also hard negatives, prompts with one unit changed."""
    kinds = ("easy", "refined", "near") if near_lambda else ("easy", "refined")

    def loss_fn(model, rows, groups, is_shared):
        images, texts, _ = _features(scorer, data, model, rows, kinds)
        easy, refined = (target[rows].to(images.device) for target in labels)
        loss_of = kernels.sharded_ict_loss if is_shared else kernels.ict_loss
        loss = loss_of(images, *texts[:2], easy, refined, groups=groups, **options)
        has_near = [i for i, text in enumerate(data.prompts("near", rows)) if text]  # some prompts have nothing to change
        if near_lambda and has_near:
            near_loss = losses.matched_loss(images[:, has_near], texts[2][has_near], torch.zeros_like(easy[has_near]))
            loss = loss + near_lambda * len(has_near) / len(rows) * near_loss  # so that the mean over processes is that of the batch
        return loss

    return loss_fn


def preference_loss(scorer: ClipScorer, data: Triplets) -> BatchLoss:
    """losses.preference_loss of logit-scaled cosines with the easy prompts."""

    def loss_fn(model, rows, groups, is_shared):
        images, (texts,), logit_scale = _features(scorer, data, model, rows, ("easy",))
        return losses.preference_loss(logit_scale * (images * texts).sum(-1).T)

    return loss_fn


def _features(scorer: ClipScorer, data: Triplets, model: nn.Module, rows: Tensor, kinds: tuple) -> tuple[Tensor, list[Tensor], Tensor]:
    """Unit features of the images (3, b, d) and of each kind of prompt (b, d), and the logit scale."""
    device = scorer.model.logit_scale.device
    pixels = scorer.preprocess(data.pixels(rows).flatten(0, 1).to(device))
    tokens = scorer.tokenizer([text or "" for kind in kinds for text in data.prompts(kind, rows)])
    images, texts, logit_scale = model(pixels, tokens.to(device))
    return images.unflatten(0, (3, -1)), texts.chunk(len(kinds)), logit_scale


def hp_loss(
    data: Triplets, objective: str, margin: float, hinge_on: str, product_loss: Callable | None, corrupt_lambda: float = 0.0
) -> BatchLoss:
    """The objective of `train.hp` on the head's outputs; with hinges also `product_loss`, if there is one, and for corrupt_lambda the hinge
    between I3 and itself corrupted, so that rich but spoilt pictures are among the losers."""

    def loss_fn(model, rows, groups, is_shared):
        pixels = data.pixels(rows)
        if corrupt_lambda:
            pixels = torch.cat([pixels, _corrupted(pixels[2], rows)[None]])
        images = len(pixels)
        pixels = pixels.flatten(0, 1).to(next(model.parameters()).device)
        logits = model(pixels).float().unflatten(0, (images, -1)).movedim(0, 1)  # (b, images, outputs)
        mean = logits[:, :3, 0]
        if objective == "preference":
            return losses.preference_loss(mean)
        if objective == "uncertain":
            return losses.uncertain_loss(mean, logits[..., 1])
        scores = logits[..., 0].sigmoid() if hinge_on == "score" else logits[..., 0]
        loss = losses.hp_loss(scores[:, :3], margin)
        if corrupt_lambda:
            loss = loss + corrupt_lambda * (margin - (scores[:, 2] - scores[:, 3])).relu().mean()
        return loss + product_loss(mean, rows, is_shared) if product_loss else loss

    return loss_fn


def _corrupted(pixels: Tensor, rows: Tensor) -> Tensor:
    """The pixels (b, 3, h, w), each visibly corrupted in one or two ways; a batch of the same rows is corrupted alike."""
    generator = torch.Generator().manual_seed(int(rows.sum()))
    severity = sample_severities(3 * len(pixels), generator)
    severity = severity[severity.sum(1).argsort(descending=True)[: len(pixels)]]
    return corrupt(pixels, severity[torch.randperm(len(pixels), generator=generator)], generator)


def product_loss(ict_scores: Tensor, text_lambda: float, margin: float, activation: str, reduction: str) -> Callable:
    """The hinges on ICT * HP, of HP's logits (b, 3)."""

    def loss_fn(logits, rows, is_shared):
        values = logits if activation == "softmax" else logits.sigmoid()
        loss = losses.icthp_loss(ict_scores[rows].to(logits.device), values, margin, activation=activation, reduction=reduction)
        processes = PartialState().num_processes if is_shared and reduction == "sum" else 1  # whose gradients are averaged
        return text_lambda * loss * processes

    return loss_fn
