"""Tiny random models in the hub's formats, built once a run; no test needs the network or trained weights."""

import os
from pathlib import Path

import pytest
import torch

if not torch.cuda.is_available():
    os.environ["TRITON_INTERPRET"] = "1"  # before the kernels are imported: Triton then runs them on CPU tensors

from faulty_pairs import faulty_pairs
from icthp import data, images, microworld, scorers

torch.set_num_threads(1)  # tiny tensors; threads would only wait for each other on a busy machine

ROOT = Path(__file__).parent.parent


BUILT = {"clip_folder", "sd3_folder", "pipe", "triplets_folder"}  # fixtures that build a model
QUICK = 10  # seconds of the processor, first imports included


def pytest_collection_modifyitems(items):
    """`make check` leaves out what is marked slow: tests of these fixtures, of the data or of a clone, and those that say so."""
    for item in items:
        if BUILT & set(item.fixturenames) or item.get_closest_marker("skipif"):
            item.add_marker("slow")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item):
    """So that `make check` stays a minute: there a test that takes long must be marked."""
    spent = lambda: sum(os.times()[:4])  # of this process and of those that it started
    before = spent()
    result = yield
    if item.config.option.markexpr == "not slow" and spent() - before > QUICK:
        pytest.fail(f"it took {spent() - before:.0f} s of the processor: mark it slow, or make it faster")
    return result


@pytest.fixture(scope="session")
def scenes():
    return microworld.sample(64, torch.Generator().manual_seed(0))


@pytest.fixture(scope="session")
def prompts(scenes):
    """The short prompts of five scenes."""
    return microworld.captions(scenes[:5])


@pytest.fixture(scope="session")
def tokenizer(scenes):
    return microworld.train_tokenizer(microworld.captions(scenes, "long") + microworld.captions(scenes), 32)


@pytest.fixture(scope="session")
def clip_folder(tokenizer, tmp_path_factory):
    torch.manual_seed(0)
    config = microworld.clip_config(tokenizer, width=32, layers=2, text_layers=2, embed_dim=16)
    folder = tmp_path_factory.mktemp("clip")
    scorers.save_clip(microworld.new_clip(config), tokenizer, config, folder, dtype=torch.float32)
    return folder


@pytest.fixture
def clip(clip_folder):
    return scorers.load("clip", f"local-dir:{clip_folder}")


@pytest.fixture(scope="session")
def sd3_folder(clip_folder, tokenizer, tmp_path_factory):
    from icthp import pipelines  # diffusers: only for tests that need it

    torch.manual_seed(0)
    clip = scorers.load_clip(f"local-dir:{clip_folder}").model
    vae = microworld.new_vae((8, 16, 16), latent_channels=4)
    pipe = microworld.new_sd3(
        pipelines.text_tower(clip, tokenizer), tokenizer, vae, width=32, layers=2, text_width=32, text_layers=2, latent_size=8
    )
    for p in pipe.transformer.parameters():  # as if trained: a new one answers zero
        if not p.any():
            torch.nn.init.normal_(p, std=0.1)
    folder = tmp_path_factory.mktemp("sd3")
    pipelines.save_sd3(pipe, folder)
    return folder


@pytest.fixture
def pipe(sd3_folder):
    """A tiny pipeline with a LoRA that already does something."""
    from icthp import pipelines, tuning

    pipe = pipelines.load_pipeline(str(sd3_folder))
    for p in tuning.add_lora(pipe, rank=2):
        torch.nn.init.normal_(p, std=0.2, generator=torch.Generator().manual_seed(1))
    return pipe


@pytest.fixture
def load_pipe(sd3_folder):
    """load_pipe() -> a tiny pipeline of its own, without a LoRA."""
    from icthp import pipelines

    return lambda: pipelines.load_pipeline(str(sd3_folder))


@pytest.fixture
def prompt(pipe, scenes):
    """Embeddings of three prompts, and pooled."""
    from icthp import tuning

    return tuning.encode(pipe, microworld.captions(scenes[:3]))


@pytest.fixture(scope="session")
def triplets_folder(clip_folder, tmp_path_factory):
    """24 train and 6 test triplets of the microworld; I3 is a rich render."""
    folder, scorer = tmp_path_factory.mktemp("triplets"), scorers.load("clip", f"local-dir:{clip_folder}")
    for split, count in (("train", 24), ("test", 6)):
        drawn = microworld.sample(count, torch.Generator().manual_seed(count))
        rich = images.encode(microworld.render(drawn.at(1)))
        faulty_pairs(drawn).to_parquet(folder / "pairs" / f"{split}.parquet")
        pairs, long = data.read_pairs(folder / "pairs", split), microworld.captions(drawn.at(1), "long")
        constants, near = (
            {"seed": 0, "split": split, "source_3": "renderer"},
            microworld.captions(drawn.replace(count=drawn.latents["count"])),
        )
        measured = data.measure_triplets(pairs, long, rich, scorer, folder=folder / "labels" / split)
        rows = data.build_triplets(pairs, long, rich, measured, theta=0.6, constants=constants, near_miss=near)
        data.write_triplets(rows, folder, split)
    return folder


def execute(notebook, **parameters):
    """A notebook's cells and outputs, run from the project's root as `icthp.run` runs it."""
    import papermill

    from icthp import run

    options = {"cwd": str(ROOT), "progress_bar": False, "kernel_name": "python3", "execution_timeout": 600, "config": run.KERNEL}
    return papermill.execute_notebook(str(notebook), None, parameters, **options)


def printed_by(notebook) -> str:
    """All that an executed notebook printed."""
    return "".join(output.get("text", "") for cell in notebook.cells if cell.cell_type == "code" for output in cell.outputs)
