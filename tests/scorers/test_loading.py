"""Scorers by name: from folders, files and the Hub, and a class of one's own."""

import io
import json
import os
import pathlib
import pickle
import re
import shutil
import subprocess
import sys

import open_clip
import pandas as pd
import pytest
import torch
from PIL import Image

import icthp
from conftest import ROOT
from icthp import files
from icthp.evaluation import gallery
from icthp.microworld import models
from icthp.scorers import aesthetic, checkpoints, combined, configs, loading
from icthp.scorers.clip import save_clip
from icthp.scorers.hp import HpScorer, make_head
from icthp.scorers.tokenizers import to_transformers
from icthp.tuning.identity import identity_of


def test_unknown_and_missing_scorers():
    with pytest.raises(ValueError, match="no scorer is called 'clipp'"):
        loading.load("clipp")
    with pytest.raises(FileNotFoundError, match="dvc repro train_hp"):
        loading.load("hp", "nowhere/hp")
    with pytest.raises(FileNotFoundError, match="models/nope is neither a folder"):
        loading.load("ict", "models/nope")
    with pytest.raises(FileNotFoundError, match="nowhere.pt is not there"):
        loading.load("clip", "ViT-B-32/some/nowhere.pt")
    with pytest.raises(ValueError, match="no weights 'openia' of ViT-B-32: it has openai"):
        loading.load("clip", "ViT-B-32/openia")
    with pytest.raises(FileNotFoundError, match="`dvc pull` fetches data/, looked for open_clip_model.safetensors"):
        loading.load("clip", "local-dir:nowhere")


@pytest.mark.parametrize("name", ["ict", "hp"])
def test_a_folder_of_a_killed_training_is_named(name, tmp_path):
    (tmp_path / "work").mkdir()
    (tmp_path / "work/checkpoint.pt").write_bytes(b"")
    with pytest.raises(FileNotFoundError, match=f"has no weights: `dvc repro train_{name}` makes it"):
        loading.load(name, f"local-dir:{tmp_path}" if name == "ict" else str(tmp_path))


def test_scorers_of_one_source_share_their_weights(clip_folder, tmp_path):
    """ICT-HP is made of the ict and hp beside it; each scorer keeps its own name and gives what it gives alone."""
    clip = loading.load("clip", f"local-dir:{clip_folder}")
    HpScorer(clip, make_head(16), {"width": 16}).save_pretrained(tmp_path / "hp")
    sources = {"clip": f"local-dir:{clip_folder}", "ict": f"local-dir:{clip_folder}", "hp": str(tmp_path / "hp"),
               "icthp": f"{clip_folder},{tmp_path / 'hp'}"}  # fmt: skip
    loaded = loading.load_all(sources)
    assert [scorer.name for scorer in loaded.values()] == list(sources)
    assert (
        loaded["icthp"].ict.model is loaded["ict"].model is loaded["clip"].model
        and loaded["icthp"].hp.clip.model is loaded["hp"].clip.model
    )
    pixels, prompts = torch.rand(2, 3, 64, 64, generator=torch.Generator().manual_seed(0)), ["a red circle", "two stars"]
    for name, source in sources.items():
        assert torch.equal(loaded[name].score(pixels, prompts), loading.load(name, source).score(pixels, prompts))
    half = loading.load_all(sources, dtype=torch.bfloat16)
    assert {p.dtype for scorer in half.values() for p in scorer.parameters()} == {torch.bfloat16}


def test_load_does_not_unpickle(clip_folder, tmp_path):
    """The file would create another one as soon as anybody unpickled it."""
    bad, trace = tmp_path / "head.pth", tmp_path / "it_ran"
    bad.write_bytes(f"cos\nsystem\n(S'touch {trace}'\ntR.".encode())
    with pytest.raises(ValueError, match="head.pth holds more than tensors, which weights_only refuses to run"):
        aesthetic.aesthetic_head(bad)
    assert not trace.exists()


def test_sources_that_cannot_be_are_named(tmp_path, clip_folder):
    scorer = loading.load("clip", f"local-dir:{clip_folder}")
    assert scorer.score(torch.full((1, 3, 8, 8), torch.nan), ["a"]).isnan().all()  # what DRaFT leaves out
    with pytest.raises(ValueError, match="at least one text"):
        scorer.score_matrix(torch.rand(1, 3, 8, 8), [])
    with pytest.raises(ValueError, match="CLIP,head.pth"):
        loading.load("aesthetic", "ViT-L-14/openai")
    with pytest.raises(FileNotFoundError, match="name the publisher's folder"):
        loading.load("imagereward", f"local-dir:{tmp_path}")


def test_released_weights_are_safetensors_only(clip_folder, sd3_folder):
    files = [p.suffix for folder in (clip_folder, sd3_folder) for p in folder.rglob("*") if p.is_file()]
    assert not {".bin", ".pt", ".pth", ".ckpt", ".pkl"} & set(files)
    assert json.loads((sd3_folder / "model_index.json").read_text(encoding="utf-8"))["text_encoder_3"] == [None, None]


def test_openais_weights_get_their_activation(monkeypatch):
    passed = {}
    monkeypatch.setattr(checkpoints.open_clip, "create_model", lambda *a, **options: passed.update(options) or torch.nn.Identity())
    for source, quick in (("ViT-B-32/openai", True), ("ViT-B-32/laion2b_s34b_b79k", False)):
        checkpoints.read_clip(source)
        assert passed["force_quick_gelu"] == quick == configs.model_config(source).get("quick_gelu", False)


@pytest.mark.parametrize("source", ["ViT-B-32/laion2b_s34b_b79k", "ViT-H-14/laion2b_s32b_b79k"])
def test_the_config_of_a_named_model(source):
    assert {"embed_dim", "vision_cfg", "text_cfg"} <= configs.model_config(source).keys()


def test_open_clips_own_tokenizer_is_saved(tmp_path, prompts):
    """As for ViT-B-32 and ViT-H-14: the folder holds it in transformers' format, with the same ids."""
    own = open_clip.get_tokenizer("ViT-B-32")
    config = models.clip_config(to_transformers(own), width=32, layers=1, text_layers=1, embed_dim=16)
    save_clip(models.new_clip(config), own, config, tmp_path)
    saved = loading.load("clip", f"local-dir:{tmp_path}").tokenizer
    texts = [*prompts, "A Photo of TWO dogs, 3.5 m apart!"]
    ours, expected = saved(texts), own(texts)
    end = own.eot_token_id
    for a, b in zip(ours.tolist(), expected.tolist()):
        assert a[: a.index(end) + 1] == b[: b.index(end) + 1]


def test_tokenizer_reads_any_text(tokenizer):
    ids = tokenizer("a striped red circle on the moon").input_ids
    assert len(ids) == 9 and ids[0] == tokenizer.bos_token_id and ids[-1] == tokenizer.eos_token_id == max(ids)
    strange = tokenizer("Zürich 42 ¿?", truncation=True).input_ids[1:-1]
    assert tokenizer.eos_token_id not in strange


# ---- from any directory ---------------------------------------------------------------------------------------------------


def run_python(code: str, folder, *arguments) -> str:
    """The last line of what Python says, started in `folder`."""
    environment = os.environ | {"PYTHONPATH": str(ROOT / "lib"), "HF_HUB_OFFLINE": "1"}
    done = subprocess.run([sys.executable, "-c", code, *map(str, arguments)], cwd=folder, env=environment, capture_output=True, text=True)
    return (done.stdout + done.stderr).strip().splitlines()[-1]


LOAD = """
import sys
import torch, icthp
scorer = icthp.load(sys.argv[1], *sys.argv[2:])
print(scorer.name, round(scorer.score(torch.full((1, 3, 8, 8), 0.5), ["a red circle"]).item(), 6), "diffusers" in sys.modules)
"""


def test_a_source_is_read_from_any_directory_without_diffusers(clip_folder, tmp_path):
    score = loading.load("ict", f"local-dir:{clip_folder}").score(torch.full((1, 3, 8, 8), 0.5), ["a red circle"]).item()
    name, value, diffusers = run_python(LOAD, tmp_path, "ict", clip_folder).split()
    assert name == "ict" and float(value) == pytest.approx(score, abs=1e-5) and diffusers == "False"


@pytest.mark.slow
def test_outside_of_a_project_the_source_is_asked_for(tmp_path):
    message = run_python(LOAD, tmp_path, "ict")
    assert message.startswith("FileNotFoundError: ict has no default weights outside of a project: pass source=")


@pytest.mark.parametrize("name", ["ict", "hp", "icthp"])
def test_a_sub_folder_of_a_project_finds_its_models(clip_folder, project, monkeypatch, name):
    """Under a path with a comma, which separates the two parts of icthp."""
    shutil.copytree(clip_folder, project / "models/ict")
    clip = loading.load("ict", f"local-dir:{clip_folder}")
    HpScorer(clip, make_head(16), {"width": 16}).eval().save_pretrained(project / "models/hp")
    pixels = torch.rand(2, 3, 64, 64)
    here = loading.load(name).score(pixels, ["a", "b"])
    monkeypatch.chdir(project / "notebooks")
    assert torch.equal(loading.load(name).score(pixels, ["a", "b"]), here)


# ---- a class of one's own -------------------------------------------------------------------------------------------------

EDGES = """
import icthp

class EdgeScorer(icthp.scorers.Scorer):
    needs_prompt = False

    def __init__(self, power="1"):
        super().__init__()
        self.power = float(power)

    def forward(self, pixels, prompts=None):
        return pixels.diff(dim=-1).abs().mean((1, 2, 3)) ** self.power
"""


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project with rewards/edge.py, which is also the working directory."""
    root = tmp_path / "one, two"
    for folder in ("rewards", "notebooks", "lib"):
        (root / folder).mkdir(parents=True)
    for file in ("params.yaml", "dvc.yaml"):
        (root / file).write_text("{}", encoding="utf-8")
    (root / "rewards/edge.py").write_text(EDGES, encoding="utf-8")
    monkeypatch.chdir(root)
    return root


def test_a_class_of_ones_own_is_a_scorer(project, monkeypatch):
    """Found from the root and from below it, scored as its formula says, with a gradient, an argument, a state and a rank."""
    pixels = torch.rand(3, 3, 16, 16)
    expected = pixels.diff(dim=-1).abs().mean((1, 2, 3))
    scorer = icthp.load("rewards/edge.py:EdgeScorer")
    assert scorer.name == type(scorer).__name__ == "EdgeScorer" and not scorer.training
    assert torch.equal(scorer.score(pixels), expected)
    assert torch.equal(scorer.score_matrix(pixels, ["a", "b"]), expected[:, None].expand(3, 2))
    levels = (pixels * 255).round().byte()
    assert torch.equal(scorer.score(levels), scorer.score(levels.float() / 255))  # bytes come as floats
    scorer.score(pixels.requires_grad_()).sum().backward()
    assert pixels.grad.abs().max() > 0
    assert torch.allclose(icthp.load("rewards/edge.py:EdgeScorer", "2").score(pixels), expected**2)
    buffer = io.BytesIO()
    torch.save(scorer.state_dict(), buffer)
    buffer.seek(0)
    scorer.load_state_dict(torch.load(buffer, weights_only=True))
    monkeypatch.chdir(project / "rewards")
    assert icthp.load("edge.py:EdgeScorer").name == icthp.load("rewards/edge.py:EdgeScorer").name == "EdgeScorer"
    assert icthp.load(f"{project}/rewards/edge.py:EdgeScorer").name == "EdgeScorer"


def test_a_class_of_other_code_or_argument_is_another_scorer(project, tmp_path):
    """For the gallery's kept scores and for a tuning that goes on."""
    Image.new("RGB", (9, 9), "red").save(project / "red.png")
    table = pd.DataFrame({"image": [str(project / "red.png")], "prompt": None})
    store = tmp_path / "store"

    def identities(source=None):
        scorer = icthp.load("rewards/edge.py:EdgeScorer", source)
        gallery.score({"edges": scorer}, table, store)
        return repr(scorer), str(identity_of(scorer.score)), len(list(store.iterdir()))

    first = identities()
    assert identities() == first and first[2] == 1
    assert all(a != b for a, b in zip(identities("2"), first))
    (project / "rewards/edge.py").write_text(EDGES.replace(".abs()", ".square()"), encoding="utf-8")
    changed = identities()
    assert all(a != b for a, b in zip(changed, first)) and changed[2] == 3
    assert repr(combined.CombinedScorer([(icthp.load("rewards/edge.py:EdgeScorer"), 1.0, None, None)])).count("code=") == 1


BAD_FILES = {
    "no class": ("x = 1", "defines no class 'EdgeScorer'; it defines none"),
    "another class": (EDGES.replace("EdgeScorer", "Edges"), "defines no class 'EdgeScorer'; it defines Edges"),
    "imported": ("from icthp.scorers import JpegScorer as EdgeScorer", "defines no class 'EdgeScorer'"),
    "a function": ("def EdgeScorer(): pass", "defines no class 'EdgeScorer'"),
    "another base": (EDGES.replace("icthp.scorers.Scorer", "object"), "is no subclass of icthp.scorers.Scorer"),
    "no forward": (EDGES.replace("forward", "backward"), "has no forward"),
    "syntax": ("class EdgeScorer(", "cannot be run: SyntaxError: "),
    "import": ("import no_such_module", "cannot be run: ModuleNotFoundError: No module named 'no_such_module'"),
    "exit": ("raise SystemExit(3)", "cannot be run: SystemExit: 3"),
    "import from beside": ("from . import helper", "ImportError: .*; it runs alone, so write into it what it needs of files beside it"),
    "no prompts": (EDGES.replace(", prompts=None", ""), "EdgeScorer.forward of .* takes no prompts: write forward"),
    "a repr of its own": (f"{EDGES}    __repr__ = lambda self: 'mine'\n", "has a __repr__ of its own.* call it extra_repr"),
    "exit in the constructor": (EDGES.replace("float(power)", "exit(3)"), r"EdgeScorer\(\) of .* failed: SystemExit: 3"),
    "no weights yet": (
        EDGES.replace("float(power)", "__import__('torch').nn.LazyLinear(1)"),
        r"EdgeScorer\(\) of .* failed: ValueError: .*Lazy",
    ),
    "constructor": (EDGES.replace("float(power)", "1 / 0"), r"EdgeScorer\(\) of .* failed: ZeroDivisionError: division by zero"),
    "no super": (EDGES.replace("super().__init__()", "pass"), r"EdgeScorer\(\) of .* failed: AttributeError"),
}


@pytest.mark.parametrize("kind", BAD_FILES)
def test_a_class_that_is_no_scorer_is_one_sentence(project, kind):
    text, says = BAD_FILES[kind]
    (project / "rewards/edge.py").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError, match=f"edge.py.* {says}|{says}") as error:
        loading.load("rewards/edge.py:EdgeScorer")
    assert "\n" not in str(error.value)


@pytest.mark.parametrize("returned", ["pixels.mean((2, 3))", "pixels.mean()", "[0.5] * len(pixels)", "None"])
def test_scores_of_another_shape_are_one_sentence(project, returned):
    (project / "rewards/edge.py").write_text(re.sub("return .*", f"return {returned}", EDGES), encoding="utf-8")
    scorer = icthp.load("rewards/edge.py:EdgeScorer")
    with pytest.raises(ValueError, match=r"^EdgeScorer.forward gave a .* for 2 images: it must return a tensor \(2,\), a score for each$"):
        scorer.score(torch.rand(2, 3, 4, 4))


def test_the_same_file_is_the_same_class_in_every_scorer(project):
    one, two = (icthp.load("rewards/edge.py:EdgeScorer") for _ in range(2))
    assert type(one) is type(two) and type(pickle.loads(pickle.dumps(one))) is type(one)


@pytest.mark.slow
def test_a_scorer_is_the_same_in_every_process(project):
    """Its identity holds no address, and what its layers add to its state."""
    extra = "    extra_repr = lambda self: str(object())\n    get_extra_state = lambda self: {'power': self.power}\n"
    (project / "rewards/edge.py").write_text(EDGES + extra, encoding="utf-8")
    one, two, other = (icthp.load("rewards/edge.py:EdgeScorer", source) for source in ("2", "2", "3"))
    assert identity_of(one) == identity_of(two) != identity_of(other)
    assert files.fingerprint(one) == files.fingerprint(two) != files.fingerprint(other)


@pytest.mark.parametrize("name", [None, 3, ["clip"], pathlib.Path("rewards/edge.py")])
def test_what_is_no_name_is_one_sentence(project, name):
    with pytest.raises(ValueError, match="no scorer is called .*; there are clip, .* and your own as file.py:Class"):
        loading.load(name)


def test_only_python_files_of_the_project_are_run(project, tmp_path):
    """Neither above the root nor through a link that leaves it."""
    outside = tmp_path / "outside.py"
    outside.write_text(f"open({str(tmp_path / 'it_ran')!r}, 'w').close()\n{EDGES}", encoding="utf-8")
    (project / "link.py").symlink_to(outside)
    (project / "notes.txt").write_text(outside.read_text(encoding="utf-8"), encoding="utf-8")
    (project / "notes.py").symlink_to(project / "notes.txt")
    for name in ("../outside.py", str(outside), "link.py", "notes.py"):
        with pytest.raises(ValueError, match="only a .py file below the project .* is run"):
            loading.load(f"{name}:EdgeScorer")
    with pytest.raises(FileNotFoundError, match="rewards/none.py is not there: name a Python file of the project"):
        loading.load("rewards/none.py:EdgeScorer")
    with pytest.raises(ValueError, match="no scorer is called 'notes.txt:EdgeScorer'"):
        loading.load("notes.txt:EdgeScorer")
    assert not (tmp_path / "it_ran").exists()
