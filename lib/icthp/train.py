"""The two rewards and their controls as training stages: what a batch of triplets teaches ICT and HP.

Notebooks 03 and 04 and the study call `ict` and `hp` on one process. On several
`accelerate launch -m icthp.train --stage ict [name=value ...]` does, with the parameters of its section of params.yaml.
"""

import argparse
import math
import shutil
import sys
from datetime import timedelta
from pathlib import Path

import pandas as pd
import torch
from accelerate import PartialState
from open_clip.transformer import VisionTransformer
from torch import Tensor, nn

from icthp import kernels, losses, trainer
from icthp.data.triplets import DECODING, Triplets
from icthp.evaluation.scoring import score_triplets
from icthp.files import atomic, atomic_folder, code, digest, fingerprint
from icthp.run import own_code
from icthp.scorers.base import Scorer
from icthp.scorers.hp import HpScorer, make_head
from icthp.scorers.loading import load
from icthp.trainer import batch_indices, isolated

_NAMES = ("out", "device", "training", "triplets", "clip", "ict")  # a resumed run knows data and models by their contents instead


@isolated()
def ict(*, out, triplets, clip, objective: str = "ict", variant: str = "paper", theta: float | None = None, neg_lambda: float = 0.5,
        alpha: float = 20.0, beta: float = 0.5, rounded: bool = False, near_lambda: float = 0.0, frozen_fraction: float = 0.0,
        train_embeddings: bool = False, device="cpu", **training) -> list[dict]:  # fmt: skip
    """Train a CLIP on the triplets of a folder and save it to `out`, in open_clip's format; returns fit's history.

    objective: "ict", or "preference", PickScore's recipe on the same triplets. variant, theta: Triplets.labels'. neg_lambda, alpha,
    beta, rounded: losses.ict_loss's. near_lambda: weight of near-miss prompts as negatives. frozen_fraction: share of both towers' blocks that
    stays frozen, train_embeddings: see `freeze`. training: see `_train`."""
    told = {k: v for k, v in locals().items() if k not in _NAMES}
    if objective not in ("ict", "preference"):
        raise ValueError(f'objective must be "ict" or "preference", not {objective!r}')
    if objective == "preference" and near_lambda:
        raise ValueError("near_lambda needs objective='ict': preferences know no mismatched prompts")
    device = _device(device)
    scorer = load("clip", clip, device=device).requires_grad_(True)
    freeze(*image_tower(scorer.model), frozen_fraction, train_embeddings)
    freeze(*text_tower(scorer.model), frozen_fraction, train_embeddings)
    scorer.model.logit_scale.requires_grad_(objective == "preference")  # a plain cosine has none
    train = Triplets(triplets, "train", scorer.preprocessing, scorer.tokenizer)
    if near_lambda and not any(train.texts["near"]):
        raise ValueError(f"{triplets} knows no near misses of its prompts: set near_lambda to 0")
    kinds = ("easy",) if objective == "preference" else ("easy", "refined", "near") if near_lambda else ("easy", "refined")
    options = {"neg_lambda": neg_lambda, "alpha": alpha, "beta": beta, "rounded": rounded}
    labels = train.labels(variant, theta)

    def loss_of(model, rows: Tensor, groups, spread: bool) -> Tensor:
        images = scorer.preprocess(train.pixels(rows).flatten(0, 1).to(device))
        tokens = scorer.tokenizer([text or "" for kind in kinds for text in train.prompts(kind, rows)])
        v, t, scale = model(images, tokens.to(device))
        v, texts = v.unflatten(0, (3, -1)), t.chunk(len(kinds))
        if objective == "preference":
            return losses.preference_loss(scale * (v * texts[0]).sum(-1).T)
        easy, refined = (part[rows].to(device) for part in labels)
        loss = (kernels.sharded_ict_loss if spread else kernels.ict_loss)(v, *texts[:2], easy, refined, groups=groups, **options)
        if near_lambda and (has := [i for i, text in enumerate(train.prompts("near", rows)) if text]):  # some have nothing to change
            near = losses.matched_loss(v[:, has], texts[2][has], torch.zeros_like(easy[has]))
            loss = loss + near_lambda * len(has) / len(rows) * near  # so that the mean over processes is that of the batch
        return loss

    return _train(scorer, scorer.model, loss_of, train, out, told, device=device, label="ict", **training)


@isolated()
def hp(*, out, triplets, clip, objective: str = "margin", margin: float = 0.3, hinge_on: str = "score", head: str = "paper",
       frozen_fraction: float = 0.5, train_embeddings: bool = False, text_lambda: float = 0.0, activation: str = "sigmoid", reduction: str = "mean",
       ict: str = "", device="cpu", **training) -> list[dict]:  # fmt: skip
    """Train HP on the triplets of a folder and save it to `out`; returns fit's history.

    objective: "margin" (hinges), "preference" (Bradley-Terry) or "uncertain" (Thurstone; the head has a variance). hinge_on: hinges on the
    "score", the sigmoid that is used afterwards, or on "logits" head outputs, as released. head: scores.head's variant. frozen_fraction: share
    of the image tower's layers that stays frozen (1: a probe of frozen features), train_embeddings: see `freeze`. text_lambda: weight of the
    hinges on ICT * HP, whose frozen scalars come from the scorer `ict`, once; activation, reduction: losses.icthp_loss's."""
    told = {k: v for k, v in locals().items() if k not in _NAMES}
    if objective not in ("margin", "preference", "uncertain") or hinge_on not in ("score", "logits"):
        raise ValueError(
            f'objective must be "margin", "preference" or "uncertain", hinge_on "score" or "logits"; got {objective}, {hinge_on}'
        )
    if text_lambda and (objective != "margin" or not ict):
        raise ValueError("text_lambda needs objective='margin' and ict, the source of a trained ICT")
    device = _device(device)
    backbone = load("clip", clip, device=device)
    torch.manual_seed(training.get("seed", 0))
    config = {"width": backbone.architecture["embed_dim"], "variant": head, "outputs": 1 + (objective == "uncertain")}
    scorer = HpScorer(backbone, make_head(**config).to(device), config)
    layers, below = image_tower(backbone.model)
    nn.ModuleList(layers).requires_grad_(True)
    freeze(layers, below, frozen_fraction, train_embeddings)
    train = Triplets(triplets, "train", backbone.preprocessing, backbone.tokenizer)
    frozen = _ict_scalars(ict, train, out, device) if text_lambda else None
    told |= {"ict": "" if frozen is None else digest(frozen.numpy().tobytes())}

    def loss_of(model, rows: Tensor, groups, spread: bool) -> Tensor:
        raw = model(train.pixels(rows).flatten(0, 1).to(device)).float().unflatten(0, (3, -1)).movedim(0, 1)  # (b, 3, outputs)
        mean = raw[..., 0]
        if objective != "margin":
            return losses.preference_loss(mean) if objective == "preference" else losses.uncertain_loss(mean, raw[..., 1])
        loss = losses.hp_loss(mean.sigmoid() if hinge_on == "score" else mean, margin)
        if text_lambda:
            values = mean if activation == "softmax" else mean.sigmoid()
            product = losses.icthp_loss(frozen[rows].to(device), values, margin, activation=activation, reduction=reduction)
            loss = loss + text_lambda * product * (PartialState().num_processes if spread and reduction == "sum" else 1)
        return loss

    return _train(scorer, _Raw(scorer), loss_of, train, out, told, device=device, label="hp", **training)


STAGES = {"ict": ict, "hp": hp}


def _device(device):
    """This process's own, where several share the work; they wait a day while one decodes pictures."""
    state = PartialState(cpu=torch.device(device).type == "cpu", timeout=timedelta(days=1))
    return state.device if state.num_processes > 1 else device


class _Raw(nn.Module):
    """HP before its sigmoid, as a module of its own: what DistributedDataParallel can wrap."""

    def __init__(self, hp: HpScorer):
        super().__init__()
        self.hp = hp

    def forward(self, pixels: Tensor) -> Tensor:
        return self.hp.logits(pixels)


def _ict_scalars(source: str, train: Triplets, out, device) -> Tensor:
    """(n, 3) scores of the frozen ICT, computed by the first process, kept for a resumed run."""
    scorer = load("ict", source, device=device)
    key = digest(
        fingerprint(scorer),
        repr(scorer),
        train.fingerprint,
        code("scorers", "evaluation/scoring", *DECODING),
    )
    file = Path(out) / f"work/ict-{key}.pt"
    with PartialState().main_process_first():
        try:
            return torch.load(file, weights_only=True)
        except Exception:  # there is none, or it is cut: a damaged file may raise anything
            scored = score_triplets(scorer, train.cache(_store(out)))
            atomic(file, lambda partial: torch.save(scored, partial))
    return scored


def _store(out) -> Path:
    """Where decoded pictures lie, beside the models, for all that read the same ones."""
    return Path(out).parent / "pictures"


def _train(scorer: Scorer, model: nn.Module, loss_of, train: Triplets, out, told: dict, *, batch: int, seed: int = 0,
           validation: float = 0.1, validate_every: int = 30, keep: str = "best", cache: bool = True, device="cpu",
           **options) -> list[dict]:  # fmt: skip
    """fit `model`, on all prompts but about a share of them, `validation`, which the same loss judges, and save the scorer. batch:
    triplets at once, over all processes; each takes its part. cache: decode every picture once, to a file beside `out`. told: what a
    resumed run must have in common beside fit's own. options: fit's."""
    state, work = PartialState(), Path(out) / "work"
    if batch % state.num_processes:
        raise ValueError(f"batch must be a multiple of the {state.num_processes} processes, not {batch}")
    if cache:
        with state.main_process_first():
            train.cache(_store(out))
    held = _held_out(train.groups, validation)
    learnt, judged = (~held).nonzero()[:, 0], held.nonzero()[:, 0]
    if len(learnt) < 2 or validation and len(judged) < 2:
        raise ValueError(f"keeping {validation:.0%} of the prompts of {len(train)} triplets for validation leaves too few on one side")
    rows_of = lambda i: learnt[batch_indices(i, n=len(learnt), size=batch, seed=seed)]

    def groups_of(rows: Tensor) -> Tensor | None:
        groups = train.groups[rows]  # only a batch that repeats a prompt needs to say so
        return groups.to(device) if len(groups.unique()) < len(groups) else None

    def loss_fn(model, i: int):
        rows, mine = rows_of(i), slice(state.process_index, None, state.num_processes)
        groups = groups_of(rows)
        return loss_of(model, rows[mine], groups if groups is None else groups[mine], True), {}

    def validate(model, _) -> float:
        parts = judged.split(batch)
        return sum(loss_of(model, rows, groups_of(rows), False).item() * len(rows) for rows in parts) / len(judged)

    recipe = {k: str(v) for k, v in told.items()} | {
        "batch": batch,
        "validation": validation,
        "data": train.fingerprint,
        "recipe": str(train.preprocessing),
    }
    history = trainer.train(model, loss_fn, checkpoint=work / "checkpoint.pt", seed=seed, validate=validate if validation else None,
                  validate_every=validate_every, keep=keep if validation else "last", schedule="linear", recipe=recipe,
                  batch=lambda i: train.column("prompt_id")[rows_of(i)].tolist(), **options)  # fmt: skip
    if state.is_main_process:
        scorer.card = ""  # the base's speaks of other weights, and an earlier run's is written over
        atomic_folder(out, lambda folder: _save(scorer, pd.DataFrame(history).assign(processes=state.num_processes), folder))
        shutil.rmtree(work)
    state.wait_for_everyone()
    return history


def _save(scorer: Scorer, history: pd.DataFrame, folder: Path) -> None:
    scorer.save_pretrained(folder)
    history.to_parquet(folder / "history.parquet")


def _held_out(groups: Tensor, share: float) -> Tensor:
    """(n,) bool: about `share` of the prompts, all their rows; every k-th prompt where the share is about 1 / k."""
    if not 0 <= share < 1:
        raise ValueError(f"validation must lie in [0, 1), not {share}")
    if not share:
        return torch.zeros(len(groups), dtype=torch.bool)
    every = round(1 / share)
    near = every > 1 and math.isclose(1 / every, share, rel_tol=0.1)
    return groups % every == 0 if near else ((groups + 1) * share).floor() > (groups * share).floor()


# ---- partly frozen towers ---------------------------------------------------------------------------------------


def image_tower(clip) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """An open_clip CLIP's image layers, lowest first, the last norm among them; and the parameters below them. ValueError for a tower
    that is no ViT."""
    visual = clip.visual
    if not isinstance(visual, VisionTransformer):
        raise ValueError(f"only a CLIP with a ViT can be trained, not one with a {type(visual).__name__}")
    return [*visual.transformer.resblocks, visual.ln_post], [
        visual.conv1.weight, visual.class_embedding, visual.positional_embedding, *visual.ln_pre.parameters()]  # fmt: skip


def text_tower(clip) -> tuple[list[nn.Module], list[nn.Parameter]]:
    """The same for its text."""
    return [*clip.transformer.resblocks, clip.ln_final], [clip.token_embedding.weight, clip.positional_embedding]


def freeze(layers: list[nn.Module], below: list[nn.Parameter], rate: float, train_embeddings: bool = False) -> None:
    """Freeze the lowest int(rate * layers) of them and what lies below, so that no gradient is computed there. train_embeddings: the embeddings
    train all the same, as released, which runs the backward pass through all the frozen layers."""
    if not 0 <= rate <= 1:
        raise ValueError(f"frozen_fraction must lie in [0, 1], not {rate}")
    count = int(rate * len(layers))
    nn.ModuleList(layers[:count]).requires_grad_(False)
    for parameter in below:
        parameter.requires_grad_(train_embeddings or not count)


def main() -> None:
    from icthp import run  # the parameters of notebooks, which nothing else here needs

    parser = argparse.ArgumentParser(prog="icthp.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=sorted(STAGES), required=True)
    parser.add_argument("pairs", nargs="*", metavar="name=value", help="in place of params.yaml's")
    told = parser.parse_args()
    stage = STAGES[told.stage]
    try:
        run.enter_project()
        values = run.arguments(stage, f"train_{told.stage}", told.pairs, (_train, trainer.train))
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"icthp.train: {error}")
    stage(**values)


if __name__ == "__main__":
    from icthp.run import own_code

    own_code()
    main()
