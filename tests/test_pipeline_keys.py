"""A run that goes on, and a file of pictures that is kept, know all that they depend on."""

import functools
import io
import random
import subprocess
import sys
from functools import partial

import pytest
import torch

from icthp import images, pipelines, trainer
from icthp.tuning import draft, encoding, fitting, identity, lora, sampling, training

TEXTS = ["a red circle", "two blue squares", "a green heart", "a star"]


# ---- files of pictures ---------------------------------------------------------------------------------------------------


def shards(pipe, folder, **options):
    rows = sampling.generate_shards(pipe, TEXTS, range(4), folder, shard=2, **{"steps": 2, "batch": 2} | options)
    return images.stack([io.BytesIO(row["bytes"]) for row in rows])


CHANGES = {
    "strength": lambda pipe: pipe.set_adapters(["default"], [0.5]),
    "disabled": lambda pipe: pipe.disable_lora(),
    "other latents": lambda pipe: pipe.vae.register_to_config(scaling_factor=2.0),
    "other scheduler": lambda pipe: pipe.register_modules(scheduler=type(pipe.scheduler).from_config(pipe.scheduler.config, shift=1.0)),
}


@pytest.mark.parametrize("change", CHANGES)
def test_pictures_are_drawn_anew_for_whatever_changes_them(pipe, tmp_path, change):
    """Weights alone do not tell."""
    first, before = shards(pipe, tmp_path), sorted(tmp_path.iterdir())
    CHANGES[change](pipe)
    then = shards(pipe, tmp_path)
    true = sampling.generate(pipe, TEXTS, ids=range(4), steps=2, batch=2)
    assert (then - true).abs().max() <= 0.51 / 255 and (then - first).abs().max() > 1 / 255
    assert len(list(tmp_path.iterdir())) == 2 * len(before)


def test_a_tokenizer_that_reads_other_words_is_told(pipe):
    own = identity.identity_of_tokens(pipe, TEXTS)
    pipe.tokenizer.add_tokens(["hear"])  # of "heart"
    other = identity.identity_of_tokens(pipe, TEXTS)
    assert own != other and own == identity.identity_of_tokens(pipelines.load_pipeline(pipe.config._name_or_path), TEXTS)
    assert other == identity.identity_of_tokens(pipe, TEXTS)


def test_a_changed_and_restored_pipeline_uses_its_files_again(pipe, tmp_path, monkeypatch):
    first = shards(pipe, tmp_path)
    pipe.set_adapters(["default"], [0.5])
    pipe.set_adapters(["default"], [1.0])
    monkeypatch.setattr(sampling, "generate", None)
    assert torch.equal(shards(pipe, tmp_path), first)


def test_another_version_of_a_library_or_of_our_code_draws_anew(pipe, monkeypatch):
    own = identity.identity_of_pipeline(pipe)
    assert own == identity.identity_of_pipeline(pipe)
    monkeypatch.setattr(identity, "version", lambda name: "0")
    assert identity.identity_of_pipeline(pipe)["versions"] != own["versions"]
    monkeypatch.setattr(identity.files, "code", lambda *modules: " ".join(modules))
    assert {"tuning.sampling", "tuning.lora", "pipelines"} <= set(identity.identity_of_pipeline(pipe)["code"].split())


@pytest.mark.parametrize("length", [0, 0.5])
def test_a_file_of_pictures_that_was_cut_is_drawn_anew(pipe, tmp_path, length):
    first = shards(pipe, tmp_path)
    file = random.choice(sorted(tmp_path.iterdir()))
    whole = file.read_bytes()
    file.write_bytes(whole[: int(len(whole) * length)])
    assert torch.equal(shards(pipe, tmp_path), first) and file.read_bytes() == whole


# ---- a run that goes on --------------------------------------------------------------------------------------------------


class Killed(Exception):
    pass


def tune(folder, pipe_folder, prompts, update, kill_at=None):
    pipe, seen = pipelines.load_pipeline(str(pipe_folder)), []
    lora.add_lora(pipe, rank=2)

    def reward(pixels, texts):
        seen.append(texts)
        if len(seen) == kill_at:
            raise Killed
        return -pixels.square().mean((1, 2, 3))

    return training.tune(pipe, prompts, reward, update, batch=2, steps=4, lr=1e-3, checkpoint=folder / "c.pt", save_every=1)


def test_a_run_goes_on_with_its_own_prompts_alone(sd3_folder, tmp_path):
    """Other ones are refused also where the first batch, which the loop repeats, is the same."""
    prompts, update = [f"{text} {i}" for i in range(3) for text in TEXTS], partial(draft.draft_step, steps=2)
    with pytest.raises(Killed):
        tune(tmp_path, sd3_folder, prompts, update, kill_at=3)
    first = set(trainer.batch_indices(0, n=12, size=2, seed=0).tolist())
    with pytest.raises(ValueError, match="delete it to start again"):
        tune(tmp_path, sd3_folder, [p if i in first else "a cat" for i, p in enumerate(prompts)], update)
    assert len(tune(tmp_path, sd3_folder, list(prompts), update)) == 4


def test_a_run_goes_on_with_its_own_negative_alone(sd3_folder, tmp_path):
    """It differs where the first step's numbers do not: behind the fourth decimal of the loss."""
    pipe = pipelines.load_pipeline(str(sd3_folder))
    negative = encoding.encode(pipe, [""])
    update = lambda embeds: partial(draft.draft_step, steps=2, guidance=1.5, negative=embeds)
    with pytest.raises(Killed):
        tune(tmp_path, sd3_folder, TEXTS, update(negative), kill_at=3)
    with pytest.raises(ValueError, match="delete it to start again"):
        tune(tmp_path, sd3_folder, TEXTS, update((negative[0] * (1 + 1e-6), negative[1])))
    assert len(tune(tmp_path, sd3_folder, TEXTS, update(encoding.encode(pipe, [""])))) == 4


def scale(x, by=1):
    return x * by


def closing_over(value):
    return lambda x: x * value


ALIKE = [
    (lambda: partial(scale, by=2), lambda: partial(scale, by=3)),
    (lambda: partial(scale, by=2), lambda: partial(closing_over, value=2)),
    (lambda: closing_over(2), lambda: closing_over(3)),
    (lambda: lambda x: x + 1, lambda: lambda x: x + 2),
    (lambda: lambda x: x.sin(), lambda: lambda x: x.cos()),
    (lambda: partial(draft.draft_step, k=1, negative=(torch.ones(2), torch.zeros(2))),
     lambda: partial(draft.draft_step, k=1, negative=(torch.ones(2), torch.ones(2)))),
    (lambda: torch.ones(2, 3), lambda: torch.ones(3, 2)),
    (lambda: torch.float32, lambda: torch.bfloat16),
    (lambda: torch.tensor(3).numpy(), lambda: torch.tensor(4).numpy()),
    (lambda: {"a": [1, (2, None)]}, lambda: {"a": [1, (3, None)]}),
    (lambda: partial(scale, by=partial(scale, by=1)), lambda: partial(scale, by=partial(scale, by=2))),
    (lambda: draft.draft_step, lambda: fitting.fit_step),
    (lambda: functools.reduce, lambda: functools.lru_cache),
]  # fmt: skip


@pytest.mark.parametrize("one, two", ALIKE)
def test_options_are_told_apart(one, two):
    """By what they do, not by where they lie."""
    assert identity.identity_of(one()) == identity.identity_of(one()) != identity.identity_of(two())


def test_a_function_that_calls_itself_is_told():
    def down(n):
        return n and down(n - 1)

    assert identity.identity_of(down) == identity.identity_of(down)


@pytest.mark.slow
def test_another_process_says_the_same():
    code = (
        "from test_pipeline_keys import ALIKE; from icthp.tuning import identity; print([identity.identity_of(one()) for one, _ in ALIKE])"
    )
    runs = [subprocess.run([sys.executable, "-c", code], cwd=__file__.rpartition("/")[0], capture_output=True, text=True) for _ in range(2)]
    assert runs[0].stdout == runs[1].stdout and len(runs[0].stdout) > 500, runs[0].stderr[-2000:]
