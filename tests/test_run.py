import ast
import os
import re
import shutil
import subprocess
import sys
import time

import nbformat
import pytest
import yaml

from conftest import ROOT
from icthp import run

PARAMS = {"shared": {"seed": 7, "device": "cpu"}, "stage": {"lr": 1e-5, "flag": False, "name": "no", "n": 3, "none": ""}}
CELL = 'lr = 1.0\nflag = True\nname = "x"\nn = 1\nnone = "y"\nseed = 0'


@pytest.fixture
def project(tmp_path, monkeypatch):
    """A project of one notebook that writes the type and value of its parameters."""
    monkeypatch.chdir(tmp_path)
    text = yaml.dump(PARAMS, sort_keys=False).replace("1.0e-05", "1e-5")  # a string to YAML 1.1
    (tmp_path / "params.yaml").write_text(text, encoding="utf-8")
    write(tmp_path / "n.ipynb", CELL, 'open("seen.txt", "w").write(repr([lr, flag, name, n, none, seed]))')
    return tmp_path


def write(path, parameters, *cells):
    cells = [nbformat.v4.new_code_cell(parameters, metadata={"tags": ["parameters"]}), *map(nbformat.v4.new_code_cell, cells)]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), path)


@pytest.mark.slow
def test_types_survive(project):
    assert run.main(["n.ipynb", "stage"]) == 0
    assert (project / "seen.txt").read_text(encoding="utf-8") == "[1e-05, False, 'no', 3, '', 7]"
    assert (project / "runs/notebooks/n.ipynb").exists()


@pytest.mark.slow
def test_a_value_on_the_command_line(project):
    assert run.main(["n.ipynb", "stage", "name=ict"]) == 0
    assert "'ict'" in (project / "seen.txt").read_text(encoding="utf-8") and (project / "runs/notebooks/n-ict.ipynb").exists()


@pytest.mark.slow
def test_a_stage_that_still_runs_is_not_run_beside_itself(project):
    """A second run of the same stage is refused at once in one sentence; after a SIGKILL of the first nothing is in the way."""
    write(project / "n.ipynb", CELL, 'import time\nopen("begun", "w").close()\ntime.sleep(60)')
    command = [sys.executable, "-m", "icthp.run", "n.ipynb", "stage"]
    first = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    for _ in range(300):
        if (project / "begun").exists():
            break
        time.sleep(0.1)
    second = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert second.returncode == 1 and "n.ipynb is being written by another run" in second.stderr and "Traceback" not in second.stderr
    first.kill()
    first.wait()
    write(project / "n.ipynb", CELL, "1 + 1")
    assert run.main(["n.ipynb", "stage"]) == 0


def test_command_line_values_have_types(project, capsys):
    assert run.main(["n.ipynb", "stage", "n=5", "flag=true", "lr=1e-3"]) == 0
    assert (project / "seen.txt").read_text(encoding="utf-8") == "[0.001, True, 'no', 5, '', 7]"
    assert run.main(["n.ipynb", "stage", "n"]) == 1
    assert "'n' is no parameter; write name=value" in capsys.readouterr().err


def test_a_failing_cell_fails_and_names_notebook_and_cell(project, capsys):
    write(project / "n.ipynb", CELL, "1 + 1", 'raise RuntimeError("the glass is empty")')
    assert run.main(["n.ipynb", "stage"]) == 1
    assert "n.ipynb, cell 4: RuntimeError: the glass is empty" in capsys.readouterr().err  # papermill's own cell counts too


@pytest.mark.parametrize(
    ("cell", "says"),
    [
        (CELL.replace("lr = 1.0\n", ""), "sets lr, which n.ipynb does not declare"),
        (CELL + "\nextra = 1", "declares extra, which stage in params.yaml does not set"),
    ],
)
def test_unknown_and_missing_parameters(project, capsys, cell, says):
    write(project / "n.ipynb", cell)
    assert run.main(["n.ipynb", "stage"]) == 1
    assert says in capsys.readouterr().err


def test_unknown_section_and_missing_cell(project, capsys):
    assert run.main(["n.ipynb", "stagf"]) == 1
    assert "no section 'stagf'; it has" in capsys.readouterr().err
    nbformat.write(nbformat.v4.new_notebook(), project / "n.ipynb")
    assert run.main(["n.ipynb", "stage"]) == 1
    assert "0 cells tagged `parameters`" in capsys.readouterr().err


@pytest.mark.parametrize(
    "content", [None, "", "hello", "[]", "{}", '{"nbformat": 4, "nbformat_minor": 5, "metadata": {}, "cells": 3}', b"caf\xe9"]
)
def test_what_is_no_notebook_is_named_in_one_sentence(project, capsys, content):
    if content is not None:
        (project / "x.ipynb").write_bytes(content if isinstance(content, bytes) else content.encode())
    assert run.main(["x.ipynb", "stage"]) == 1
    said = capsys.readouterr().err.splitlines()
    assert len(said) == 1 and said[0].startswith("x.ipynb: x.ipynb ") and not (project / "runs").exists()


@pytest.mark.parametrize("cell", ["lr = (", "%matplotlib inline"])
def test_a_cell_of_parameters_that_is_no_python_is_named(project, cell):
    write(project / "n.ipynb", cell)
    with pytest.raises(ValueError, match=r"n.ipynb, line 1 of the cell of parameters: "):
        run.declared(project / "n.ipynb")


def test_the_cell_of_parameters_declares_names_and_defaults(project):
    write(project / "n.ipynb", 'a: int = 3\nb = c = -1e-5\nd = None\ne = open("x")\nimport os\nf = ["x"]')
    assert run.declared(project / "n.ipynb") == {"b": -1e-5, "c": -1e-5, "d": None, "e": None, "f": ["x"], "a": 3}


@pytest.mark.parametrize(
    ("old", "new", "says"),
    [
        ("n: 3", "n: 3.5", "params.yaml, stage: n must be a whole number, not 3.5"),
        ("lr: 1e-5", "lr: '1e-5'", "params.yaml, stage: lr must be a number, not '1e-5'"),
        ("name: 'no'", "name: 007", "params.yaml, stage: name must be a text, not 7: put it in quotes"),
        ("flag: false", "flag: no", "params.yaml, stage: flag must be true or false, not 'no'"),
        ("seed: 7", "seed: true", "params.yaml, stage: seed must be a whole number, not True"),
        ("n: 3", "n: 3\n  n: 4", "params.yaml, line 9: found duplicate key"),
        ("n: 3", "n: 2019-01-01", "params.yaml, line 8: YAML's timestamp"),
    ],
)
def test_a_mistake_in_params_yaml_ends_a_run_with_one_sentence(project, capsys, old, new, says):
    text = (project / "params.yaml").read_text(encoding="utf-8")
    assert old in text
    (project / "params.yaml").write_text(text.replace(old, new), encoding="utf-8")
    assert run.main(["n.ipynb", "stage"]) == 1
    said = capsys.readouterr().err
    assert said.startswith(f"n.ipynb: {says}") and said.count("\n") == 1


def test_a_whole_number_may_stand_for_a_number(project):
    text = (project / "params.yaml").read_text(encoding="utf-8").replace("lr: 1e-5", "lr: 2")
    (project / "params.yaml").write_text(text, encoding="utf-8")
    assert run.parameters("n.ipynb", "stage", {})["lr"] == 2.0


NAMES = ["../../x", "http://h/v1", "a b{c}", "é", "x" * 5000, "..", "a=b: #1", "\n", "n-../../x{0}" + "x" * 500]


@pytest.mark.parametrize("name", NAMES)
def test_names_of_executed_notebooks_are_plain_and_short(name):
    assert re.fullmatch(r"[A-Za-z0-9._-]{1,90}", run._clean(f"n-{name}"))


def test_names_of_executed_notebooks_differ_where_values_do():
    names = [*NAMES, "a b", "a_b", "a/b", "x" * 90 + "1", "x" * 90 + "2"]
    assert len({run._clean(name) for name in names}) == len(names) and run._clean("05_draft_k-clip") == "05_draft_k-clip"


def test_values_cannot_lead_the_executed_notebook_out_of_its_folder(project):
    before, name = {p.name for p in project.iterdir()}, NAMES[-1]
    made = run.run("n.ipynb", "stage", name=name)
    assert repr(name) in (project / "seen.txt").read_text(encoding="utf-8")
    assert {p.name for p in project.iterdir()} == before | {"runs", "seen.txt"}
    files = {p for p in (project / "runs").rglob("*") if p.is_file()}
    assert files == {project / made, (project / made).with_suffix(".lock")} and made.parent.as_posix() == "runs/notebooks"
    assert run.main(["n.ipynb", "stage", "output=elsewhere.ipynb"]) == 1 and not (project / "elsewhere.ipynb").exists()


@pytest.mark.slow
def test_a_notebook_is_named_from_here_or_from_the_root(project, monkeypatch):
    (project / "deep").mkdir()
    shutil.copy(project / "n.ipynb", project / "deep/m.ipynb")
    monkeypatch.chdir(project / "deep")
    assert run.main(["m.ipynb", "stage"]) == 0 and (project / "runs/notebooks/m.ipynb").exists()
    monkeypatch.chdir(project / "deep")
    assert run.main(["n.ipynb", "stage"]) == 0 and (project / "runs/notebooks/n.ipynb").exists()
    assert not (project / "deep/runs").exists()


NOISE = """from icthp import pipelines, train
from icthp.data import triplets
from icthp.evaluation import generator, geneval
from icthp.microworld import detector
from icthp.scorers import loading
from icthp.tuning import draft, lora, sampling
print("said in passing")
"""


@pytest.mark.slow
def test_a_run_tells_its_headline_and_nothing_else(project):
    """A progress bar, where the executed notebook lies, what its cell tagged `headline` shows; no warnings of libraries."""
    write(project / "n.ipynb", CELL, NOISE, 'from matplotlib.figure import Figure\ndisplay(Figure())\n{"accuracy": 0.75}')
    notebook = nbformat.read(project / "n.ipynb", 4)
    notebook.cells[2].metadata.tags = ["headline"]
    nbformat.write(notebook, project / "n.ipynb")
    done = subprocess.run([sys.executable, "-m", "icthp.run", "n.ipynb", "stage"], cwd=project, capture_output=True, text=True)
    assert done.stdout.splitlines() == ["n.ipynb -> runs/notebooks/n.ipynb", "{'accuracy': 0.75}"]
    bars = [line for line in re.split(r"[\r\n]+", done.stderr) if line]
    assert bars and all(re.fullmatch(r"Executing: +\d+%\|.*\| \d/4 \[.*\]", line) for line in bars), done.stderr


@pytest.mark.slow
def test_the_kernel_does_not_say_that_it_was_interrupted(project):
    """jupyter_client interrupts each kernel that it shuts down; one that is slow to end logs that as an error, for everybody to read."""
    write(project / "n.ipynb", CELL, 'get_ipython().kernel.log.error("KeyboardInterrupt caught in kernel.")')
    done = subprocess.run([sys.executable, "-m", "icthp.run", "n.ipynb", "stage"], cwd=project, capture_output=True, text=True)
    assert done.returncode == 0 and "KeyboardInterrupt" not in done.stderr


@pytest.mark.slow
def test_a_warning_of_a_cell_is_told_once(project):
    write(project / "n.ipynb", CELL, 'import warnings\nwarnings.warn("look here")')
    done = subprocess.run([sys.executable, "-m", "icthp.run", "n.ipynb", "stage"], cwd=project, capture_output=True, text=True)
    assert done.stderr.count("UserWarning: look here") == 1


@pytest.mark.slow
def test_a_run_in_a_locale_that_knows_ascii_alone(project):
    """Values, params.yaml, the notebook and what it prints are UTF-8 all the same."""
    text = (project / "params.yaml").read_text(encoding="utf-8").replace("none: ''", "none: café")
    (project / "params.yaml").write_text(text, encoding="utf-8")
    write(project / "n.ipynb", CELL, 'print("\U0001f600", name)\nopen("seen.txt", "w", encoding="utf-8").write(name + none)')
    environment = os.environ | {"LC_ALL": "C", "PYTHONUTF8": "0", "PYTHONCOERCECLOCALE": "0", "PYTHONPATH": str(ROOT / "lib")}
    command = [sys.executable, "-m", "icthp.run", "n.ipynb", "stage", "name=\U0001f600 é"]
    done = subprocess.run(command, cwd=project, env=environment, capture_output=True)
    assert done.returncode == 0, done.stderr.decode()
    assert (project / "seen.txt").read_text(encoding="utf-8") == "\U0001f600 écafé"


def test_enter_project_from_below_and_from_outside(project, tmp_path_factory, monkeypatch):
    (project / "deep/er").mkdir(parents=True)
    monkeypatch.chdir(project / "deep/er")
    assert run.enter_project() == project
    monkeypatch.chdir(tmp_path_factory.mktemp("elsewhere"))
    with pytest.raises(FileNotFoundError, match="inside the project"):
        run.enter_project()


def test_the_project_is_found_from_a_folder_with_parameters_of_its_own(monkeypatch):
    monkeypatch.chdir(ROOT / "study")
    assert (ROOT / "study/params.yaml").exists() and run.enter_project() == ROOT


def test_a_project_without_code_of_its_own_takes_what_is_installed(project):
    (project / "lib").mkdir()
    (project / "dvc.yaml").write_text("stages: {}\n", encoding="utf-8")
    assert run.enter_project() == project and not run.foreign(project)
    (project / "lib/icthp").symlink_to(ROOT / "lib/icthp")
    assert run.enter_project() == project and not run.foreign(project)


def test_need_says_which_stage(project):
    with pytest.raises(FileNotFoundError, match="dvc repro train_ict"):
        run.need("models/ict", "train_ict")
    with pytest.raises(FileNotFoundError, match="is missing: `make rivals` makes it"):
        run.need("study/rivals.csv", "make rivals")
    with pytest.raises(FileNotFoundError, match="`dvc pull data.dvc` fetches it"):
        run.need("data/prompts/test.txt", "data.dvc")
    assert run.need("n.ipynb", "x").name == "n.ipynb"


# ---- params.yaml, the profiles and the notebooks belong together -----------------------------------------------------


def load(path):
    return yaml.safe_load((ROOT / path).read_text(encoding="utf-8"))


@pytest.mark.parametrize("profile", ["smoke", "lab", "paper"])
def test_profiles_have_the_keys_and_types_of_params(profile):
    micro, other = load("params.yaml"), load(f"profiles/{profile}.yaml")
    for section in micro:
        assert other[section].keys() == micro[section].keys(), section
        assert {k: type(v) for k, v in other[section].items()} == {k: type(v) for k, v in micro[section].items()}, section
    assert other.keys() == micro.keys()


@pytest.mark.parametrize("path", ["params.yaml", "profiles/smoke.yaml", "profiles/lab.yaml", "profiles/paper.yaml"])
def test_scientific_numbers_are_floats_for_every_yaml_reader(path):
    """1e-5 without a dot is a string in YAML 1.1."""
    for section, values in load(path).items():
        for key, value in values.items():
            assert not (isinstance(value, str) and value[:1].isdigit() and "e-" in value), f"{section}.{key}: {value!r}"


STAGES = {"paradox": "01_scoring_paradox", "explanations": "01b_explanations", "pick_high": "02_pick_high",
          "train_ict": "03_train_ict", "train_hp": "04_train_hp", "draft": "05_draft_k", "evaluate": "06_evaluate",
          "figures": "07_figures", "build_microworld": "A1_build_microworld", "bench": "A3_benchmarks"}  # fmt: skip


@pytest.mark.parametrize("section", STAGES)
def test_every_section_fits_its_notebook(section, monkeypatch):
    monkeypatch.chdir(ROOT)
    extra = {"reward": "clip"} if section == "draft" else {}
    values = run.parameters(ROOT / f"notebooks/{STAGES[section]}.ipynb", section, extra)
    assert "out" in values
    assert set(load("params.yaml")) == set(STAGES) | {"shared"}


@pytest.mark.parametrize("section", sorted(load("dvc.yaml")["stages"].keys() - {"watch", "strip", "reward", "strip_study"}))
def test_a_stage_depends_on_all_that_strip_makes_of_its_notebook(section):
    stages = load("dvc.yaml")["stages"]
    notebook, named = re.search(r"icthp.run runs/src/(\w+)\.ipynb (\w+)", stages[section]["cmd"]).groups()
    assert named == section and stages["strip"]["foreach"][section] == notebook and (ROOT / f"notebooks/{notebook}.ipynb").exists()
    assert {f"runs/src/{notebook}.{kind}" for kind in ("ipynb", "modules", "inputs")} <= set(stages[section]["deps"])
    assert section in stages[section]["params"]


def test_a_stage_of_the_study_depends_on_its_script():
    for stage in load("study/dvc.yaml")["stages"].values():
        script = re.match(r"python (\w+)\.py", stage["cmd"])[1]
        assert f"../runs/src/{script}.modules" in stage["deps"] and script in load("dvc.yaml")["stages"]["strip_study"]["matrix"]["script"]


@pytest.mark.parametrize("path", sorted((ROOT / "lib/icthp").rglob("*.py")), ids=lambda p: p.stem)
def test_the_library_needs_no_notebook_tools(path):
    """Papermill and its like are an extra: only what runs and plans notebooks imports them, and only train's command line imports
    these."""
    if path.name not in ("run.py", "params.py", "strip.py", "preflight.py", "plan.py"):
        nodes = [n for n in ast.parse(path.read_text(encoding="utf-8")).body if isinstance(n, (ast.Import, ast.ImportFrom))]
        named = {a.name for n in nodes for a in n.names} | {n.module for n in nodes if isinstance(n, ast.ImportFrom)}
        assert not named & {"papermill", "nbformat", "ruamel.yaml", "icthp.run", "run", "icthp.params", "params", "dvc"}


@pytest.mark.slow
def test_a_worker_runs_the_shared_work_alone(project):
    """Its cells up to the tagged one, without what torchrun says of a launch, on the GPU of its local rank; the whole notebook goes on."""
    cell = lambda source, *tags: nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
    names = ("RANK", "MASTER_ADDR", "CUDA_VISIBLE_DEVICES")
    record = f'import os\nopen(f"seen-{{os.getpid()}}", "w").write(repr([os.environ.get(n) for n in {names}]))'
    cells = [cell(CELL, "parameters"), cell(record, "shared-work"), cell('open("end", "w").close()')]
    nbformat.write(nbformat.v4.new_notebook(cells=cells), project / "n.ipynb")
    launch = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "MASTER_ADDR": "127.0.0.1", "CUDA_VISIBLE_DEVICES": "4,6"}
    command = [sys.executable, "-m", "icthp.run", "--work", "n.ipynb", "stage"]
    done = subprocess.run(command, capture_output=True, text=True, env=os.environ | launch)
    assert done.returncode == 0, done.stderr
    assert [file.read_text(encoding="utf-8") for file in project.glob("seen-*")] == ["[None, None, '6']"]
    assert not (project / "end").exists() and not (project / "runs/notebooks/n.ipynb").exists()
    assert run.main(["n.ipynb", "stage"]) == 0 and (project / "end").exists()


def test_a_notebook_without_shared_work_takes_no_workers(project, capsys, monkeypatch):
    assert run.main(["--work", "n.ipynb", "stage"]) == 1
    assert "n.ipynb has no cell tagged `shared-work`: run it without --work" in capsys.readouterr().err


@pytest.mark.slow
def test_without_the_microworld_its_cells_are_not_run(project):
    """They stand in the executed copy with a word why; their prose goes."""
    params = PARAMS | {"shared": PARAMS["shared"] | {"micro": False}}
    (project / "params.yaml").write_text(yaml.dump(params, sort_keys=False).replace("1.0e-05", "1e-5"), encoding="utf-8")
    code = lambda source, *tags: nbformat.v4.new_code_cell(source, metadata={"tags": list(tags)})
    prose = lambda source, *tags: nbformat.v4.new_markdown_cell(source, metadata={"tags": list(tags)})
    cells = [code(CELL, "parameters"), prose("of all worlds"), prose("of shapes", "micro"), code("raise RuntimeError", "micro"),
             code('open("end", "w").close()')]  # fmt: skip
    nbformat.write(nbformat.v4.new_notebook(cells=cells), project / "n.ipynb")
    assert run.main(["n.ipynb", "stage"]) == 0 and (project / "end").exists()
    executed = nbformat.read(project / "runs/notebooks/n.ipynb", 4)
    sources = [cell.source for cell in executed.cells]
    assert "of all worlds" in sources and "of shapes" not in sources
    assert [s for s in sources if "RuntimeError" in s] == [
        "# Not run at this scale: it needs the microworld, whose truth is known.\nraise RuntimeError"
    ]
