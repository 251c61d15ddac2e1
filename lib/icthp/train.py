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
from typing import NamedTuple

import pandas as pd
import torch
from accelerate import PartialState
from torch import Tensor, nn

from icthp import objectives, trainer
from icthp.data.triplets import Triplets
from icthp.evaluation.scoring import score_triplets
from icthp.files import atomic, atomic_folder, code, digest, fingerprint, read_json, save_json
from icthp.freezing import freeze, image_layers, text_layers
from icthp.isolation import isolated
from icthp.objectives import BatchLoss
from icthp.precision import autocast
from icthp.scorers.base import Scorer
from icthp.scorers.clip import ClipScorer
from icthp.scorers.hp import HpScorer, make_head
from icthp.scorers.loading import load
from icthp.scorers.states import weights_in
from icthp.trainer import batch_indices

_PLACES = ("out", "device", "training", "triplets", "clip", "ict")  # a resumed run knows data and models by their contents instead


@isolated()
def ict(*, out, triplets, clip, objective: str = "ict", variant: str = "paper", theta: float | None = None, neg_lambda: float = 0.5,
        alpha: float = 20.0, beta: float = 0.5, rounded: bool = False, near_lambda: float = 0.0, frozen_fraction: float = 0.0,
        train_embeddings: bool = False, device="cpu", **training) -> list[dict]:  # fmt: skip
    """Train a CLIP on the triplets of a folder and save it to `out`, in open_clip's format; returns the trainer's history.

    objective: "ict", or "preference", PickScore's recipe on the same triplets. variant, theta: Triplets.labels'. neg_lambda, alpha,
    beta, rounded: losses.ict_loss's. near_lambda: weight of hard negatives, prompts with one unit changed. frozen_fraction: share of
    both towers' blocks that stays frozen, train_embeddings: see `freezing.freeze`. training: see `_train`."""
    config = {name: value for name, value in locals().items() if name not in _PLACES}
    if objective not in ("ict", "preference"):
        raise ValueError(f'objective must be "ict" or "preference", not {objective!r}')
    if objective == "preference" and near_lambda:
        raise ValueError("near_lambda needs objective='ict': preferences know no mismatched prompts")
    device = _device(device)
    scorer = load("clip", clip, device=device).requires_grad_(True)
    for layers, embeddings in (image_layers(scorer.model), text_layers(scorer.model)):
        freeze(layers, embeddings, frozen_fraction, train_embeddings)
    scorer.model.logit_scale.requires_grad_(objective == "preference")  # a plain cosine has none
    data = Triplets(triplets, "train", scorer.preprocessing, scorer.tokenizer)
    if near_lambda and not any(data.texts["near"]):
        raise ValueError(f"{triplets} has no hard negatives of its prompts (column near_miss): set near_lambda to 0")
    labels = data.labels(variant, theta)
    if objective == "ict":
        batch_loss = objectives.ict_loss(scorer, data, labels, near_lambda, neg_lambda=neg_lambda, alpha=alpha, beta=beta, rounded=rounded)
    else:
        batch_loss = objectives.preference_loss(scorer, data)
    return _train(scorer, scorer.model, batch_loss, data, out, config, device=device, label="ict", **training)


@isolated()
def hp(*, out, triplets, clip, objective: str = "margin", margin: float = 0.3, hinge_on: str = "score", head: str = "paper",
       frozen_fraction: float = 0.5, train_embeddings: bool = False, text_lambda: float = 0.0, activation: str = "sigmoid",
       reduction: str = "mean", ict: str = "", corrupt_lambda: float = 0.0, device="cpu", **training) -> list[dict]:  # fmt: skip
    """Train HP on the triplets of a folder and save it to `out`; returns the trainer's history.

    objective: "margin" (hinges), "preference" (Bradley-Terry) or "uncertain" (Thurstone; the head has a variance). hinge_on: hinges on
    the "score", the sigmoid that is used afterwards, or on the head's "logits", as released. head: scorers.make_head's variant.
    frozen_fraction: share of the image tower's layers that stays frozen (1: a probe of frozen features), train_embeddings: see
    `freezing.freeze`. text_lambda: weight of the hinges on ICT * HP, whose frozen scalars come from the scorer `ict`, once; activation,
    reduction: losses.icthp_loss's. corrupt_lambda: weight of a hinge between I3 and itself corrupted (icthp.corruptions).
    training: see `_train`."""
    config = {name: value for name, value in locals().items() if name not in _PLACES}
    if objective not in ("margin", "preference", "uncertain"):
        raise ValueError(f'objective must be "margin", "preference" or "uncertain", not {objective!r}')
    if hinge_on not in ("score", "logits"):
        raise ValueError(f'hinge_on must be "score" or "logits", not {hinge_on!r}')
    if text_lambda and (objective != "margin" or not ict):
        raise ValueError("text_lambda needs objective='margin' and ict, the source of a trained ICT")
    if corrupt_lambda and objective != "margin":
        raise ValueError("corrupt_lambda needs objective='margin'")
    device = _device(device)
    backbone = load("clip", clip, device=device)
    torch.manual_seed(training.get("seed", 0))  # of the head's first weights
    scorer = _new_hp(backbone, head, outputs=2 if objective == "uncertain" else 1)
    layers, embeddings = image_layers(backbone.model)
    nn.ModuleList(layers).requires_grad_(True)
    freeze(layers, embeddings, frozen_fraction, train_embeddings)
    data = Triplets(triplets, "train", backbone.preprocessing, backbone.tokenizer)
    config["ict"] = ""
    product_loss = None
    if text_lambda:
        ict_scores = _ict_scalars(ict, data, out, device)
        config["ict"] = digest(ict_scores.numpy().tobytes())
        product_loss = objectives.product_loss(ict_scores, text_lambda, margin, activation, reduction)
    batch_loss = objectives.hp_loss(data, objective, margin, hinge_on, product_loss, corrupt_lambda)
    return _train(scorer, _Logits(scorer), batch_loss, data, out, config, device=device, label="hp", **training)


def _new_hp(backbone: ClipScorer, head: str, outputs: int) -> HpScorer:
    config = {"width": backbone.architecture["embed_dim"], "variant": head, "outputs": outputs}
    return HpScorer(backbone, make_head(**config).to(backbone.device), config)


class _Logits(nn.Module):
    """HP before its sigmoid, as a module of its own: what DistributedDataParallel can wrap."""

    def __init__(self, hp: HpScorer):
        super().__init__()
        self.hp = hp

    def forward(self, pixels: Tensor) -> Tensor:
        return self.hp.logits(pixels)


def _ict_scalars(source: str, data: Triplets, out, device) -> Tensor:
    """(n, 3) scores of the frozen ICT, computed by the first process, kept for a resumed run."""
    scorer = load("ict", source, device=device)
    key = digest(fingerprint(scorer), repr(scorer), data.fingerprint, code("scorers", "evaluation.scoring", "data.triplets"))
    file = Path(out) / f"work/ict-{key}.pt"
    with PartialState().main_process_first():
        try:
            return torch.load(file, weights_only=True)
        except Exception:  # there is none, or it is cut: a damaged file may raise anything
            scored = score_triplets(scorer, data.cache(_store(out)))
            atomic(file, lambda partial: torch.save(scored, partial))
    return scored


# ---- on the triplets of a folder --------------------------------------------------------------------------------


def _train(scorer: Scorer, model: nn.Module, batch_loss: BatchLoss, data: Triplets, out, config: dict, *, batch: int,
           seed: int = 0, validation: float = 0.1, validate_every: int = 30, restore_best: bool = True, cache: bool = True,
           device="cpu", **options) -> list[dict]:  # fmt: skip
    """Train `model` on all prompts but the held-out ones, on which the same loss validates, and save the scorer.

    batch: triplets at once, over all processes; each takes its part. validation: about this share of the prompts is held out. cache: decode
    every picture once, to a file beside `out`. config: what a resumed run must have in common. options: trainer.train's."""
    state = PartialState()
    if batch % state.num_processes:
        raise ValueError(f"batch must be a multiple of the {state.num_processes} processes, not {batch}")
    config = {name: str(value) for name, value in config.items()}
    config |= {"batch": batch, "validation": validation, "data": data.fingerprint, "preprocessing": str(data.preprocessing)}
    key = digest(config, options | {"seed": seed, "restore_best": restore_best, "validate_every": validate_every},
                 fingerprint(scorer), code("train"))  # fmt: skip
    if finished := _finished(Path(out), key):
        print(f"{out} holds what this very run made: it is not trained again (delete {out}/{FINISHED} to do so)")
        return finished
    if cache:
        data.cache(_store(out))
    batches = _Batches(data, *_split(data, validation), batch, seed, device)

    def loss_fn(model, i: int):
        rows = batches.rows(i)
        groups = batches.groups(rows)
        shard = slice(state.process_index, None, state.num_processes)
        return batch_loss(model, rows[shard], groups if groups is None else groups[shard], True), {}

    def validate(model, _) -> float:
        total = 0.0
        for rows in batches.val_idx.split(batch):
            with autocast(device, options.get("precision", "no")):
                total += batch_loss(model, rows, batches.groups(rows), False).item() * len(rows)
        return total / len(batches.val_idx)

    history = trainer.train(
        model, loss_fn, checkpoint=Path(out) / "work/checkpoint.pt", seed=seed, validate=validate if validation else None,
        validate_every=validate_every, restore_best=restore_best and validation > 0, schedule="linear", config=config,
        prompt_ids=batches.prompt_ids, **options)  # fmt: skip
    if state.is_main_process:
        scorer.card = ""  # the base's speaks of other weights, and an earlier run's is written over
        atomic_folder(out, lambda folder: _save(scorer, pd.DataFrame(history).assign(processes=state.num_processes), key, folder))
        shutil.rmtree(Path(out) / "work")
    state.wait_for_everyone()
    return history


class _Batches(NamedTuple):
    """Which rows of the triplets a step trains on, and which validate."""

    data: Triplets
    train_idx: Tensor  # (n,) int64
    val_idx: Tensor  # (m,) int64
    size: int
    seed: int
    device: torch.device | str

    def rows(self, i: int) -> Tensor:
        return self.train_idx[batch_indices(i, n=len(self.train_idx), size=self.size, seed=self.seed)]

    def groups(self, rows: Tensor) -> Tensor | None:
        groups = self.data.groups[rows]  # only a batch that repeats a prompt needs to say so
        return groups.to(self.device) if len(groups.unique()) < len(groups) else None

    def prompt_ids(self, i: int) -> list[int]:
        return self.data.column("prompt_id")[self.rows(i)].tolist()


def _split(data: Triplets, validation: float) -> tuple[Tensor, Tensor]:
    """The rows to train on and those to validate on."""
    held_out = _held_out(data.groups, validation)
    train_idx = (~held_out).nonzero()[:, 0]
    val_idx = held_out.nonzero()[:, 0]
    if len(train_idx) < 2 or validation and len(val_idx) < 2:
        raise ValueError(f"keeping {validation:.0%} of the prompts of {len(data)} triplets for validation leaves too few on one side")
    return train_idx, val_idx


def _held_out(groups: Tensor, fraction: float) -> Tensor:
    """(n,) bool: about `fraction` of the prompts, all their rows; every k-th prompt where it is about 1 / k."""
    if not 0 <= fraction < 1:
        raise ValueError(f"validation must lie in [0, 1), not {fraction}")
    if not fraction:
        return torch.zeros(len(groups), dtype=torch.bool)
    k = round(1 / fraction)
    if k > 1 and math.isclose(1 / k, fraction, rel_tol=0.1):
        return groups % k == 0
    return ((groups + 1) * fraction).floor() > (groups * fraction).floor()


FINISHED = "training.json"  # beside finished weights: which run they are of


def _finished(out: Path, key: str) -> list[dict]:
    """The history of this very run, if its weights are in `out`, as after `accelerate launch`; else nothing."""
    if not (out / FINISHED).exists() or read_json(out / FINISHED).get("key") != key or weights_in(out) is None:
        return []
    return pd.read_parquet(out / "history.parquet").to_dict("records")


def _save(scorer: Scorer, history: pd.DataFrame, key: str, folder: Path) -> None:
    scorer.save_pretrained(folder)
    history.to_parquet(folder / "history.parquet")
    save_json(folder / FINISHED, {"key": key})


def _store(out) -> Path:
    """Where decoded pictures lie, beside the models, for all that read the same ones."""
    return Path(out).parent / "pictures"


def _device(device):
    """This process's own, where several share the work; they wait a day while one decodes pictures."""
    state = PartialState(cpu=torch.device(device).type == "cpu", timeout=timedelta(days=1))
    return state.device if state.num_processes > 1 else device


# ---- from the command line --------------------------------------------------------------------------------------

STAGES = {"ict": ict, "hp": hp}
KEYWORDS = (_train, trainer.train, trainer.Hyperparameters)  # where a stage's `training` goes


def main() -> None:
    from icthp import run  # the parameters of notebooks, which nothing else here needs

    parser = argparse.ArgumentParser(prog="icthp.train", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--stage", choices=sorted(STAGES), required=True)
    parser.add_argument("pairs", nargs="*", metavar="name=value", help="in place of params.yaml's")
    args = parser.parse_args()
    stage = STAGES[args.stage]
    try:
        run.enter_project()
        values = run.arguments(stage, f"train_{args.stage}", args.pairs, KEYWORDS)
    except (ValueError, OSError, ImportError) as error:
        sys.exit(f"icthp.train: {error}")
    stage(**values)


if __name__ == "__main__":
    from icthp.run import own_code

    own_code()
    main()
