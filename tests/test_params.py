"""Types of parameters: declared by a default, never guessed; what params.yaml may hold, and what is said of the rest."""

import ast
import inspect
import json

import nbformat
import pytest

from conftest import ROOT
from icthp import params, run, train

DEFAULTS = {"text": "a", "lr": 1e-3, "n": 3, "flag": True, "free": None}


@pytest.mark.parametrize(
    "text",
    [
        "007",
        "null",
        "None",
        "true",
        "1e-5",
        "",
        " ",
        "a: b",
        "a #3 # two",
        "- a",
        "*s",
        "[r] c",
        "{}",
        "@h",
        "'t",
        "a=b",
        "é\u2028\n",
        "!!x",
    ],
)
def test_a_text_is_taken_as_it_stands(text):
    assert params.parse_arguments([f"text={text}"], DEFAULTS, "it") == {"text": text}


@pytest.mark.parametrize(
    ("pair", "value"),
    [("lr=1e-5", 1e-5), ("lr=2", 2.0), ("n=7", 7), ("n=-1", -1), ("flag=false", False), ("free=1e-5", 1e-5), ("free=", None),
     ("free=a", "a"), ("free=[1, a]", [1, "a"])],
)  # fmt: skip
def test_other_values_are_read_by_the_type_of_the_default(pair, value):
    read = params.parse_arguments([pair], DEFAULTS, "it")[pair.partition("=")[0]]
    assert read == value and type(read) is type(value)


@pytest.mark.parametrize(
    ("pair", "says"),
    [
        ("lr=fast", "lr must be a number, not 'fast'"),
        ("lr=", "lr must be a number, not ''"),
        ("lr=1e-5x", "lr must be a number, not '1e-5x'"),
        ("lr=true", "lr must be a number, not 'true'"),
        ("n=2.5", "n must be a whole number, not '2.5'"),
        ("n=1e3", "n must be a whole number, not '1e3'"),
        ("n=[", r"n must be a whole number, not '\['"),
        ("n='7'", "n must be a whole number, not \"'7'\""),
        ("flag=yes", "flag must be true or false, not 'yes'"),
        ("flag=1", "flag must be true or false, not '1'"),
        ("free=2019-01-01", "free must be a value of YAML, not '2019-01-01'"),
        ("free=!!python/object:os.x {}", "free must be a value of YAML"),
        ("text", "'text' is no parameter; write name=value"),
        ("txet=a", "it has no parameter txet; it has text, lr, n, flag, free"),
        ("checks=3", "checks is called micro_checks since 0.2.0: rename it"),
        ("text=caf\udce9", "is not UTF-8"),
    ],
)
def test_a_value_that_does_not_fit_names_parameter_type_and_value(pair, says):
    with pytest.raises(ValueError, match=f"^[^\n]*{says}[^\n]*$"):
        params.parse_arguments([pair], DEFAULTS, "it")


def test_an_argument_is_text_in_a_locale_that_knows_ascii_alone():
    argument = "text=café".encode().decode("ascii", "surrogateescape")
    assert params.parse_arguments([argument], DEFAULTS, "it") == {"text": "café"}


@pytest.mark.parametrize(
    ("value", "default"), [(2.0, 3), ("1e-5", 1e-3), (7, "a"), (True, 3), (True, 1.0), (False, "no"), (None, "a"), (0, False)]
)
def test_a_value_of_another_type_is_refused(value, default):
    with pytest.raises(ValueError, match=r"^p.yaml: x must be .*, not "):
        params.coerce("x", default, value, "p.yaml: ")


MISTAKES = {
    "": "p.yaml is empty",
    "# nothing\n": "p.yaml is empty",
    "- 1\n": "p.yaml has no sections",
    "text\n": "p.yaml has no sections",
    "a: {x: 1}\nb:\n": "p.yaml, line 2: b is no section",
    "a: {x: 1}\nb: [1]\n": "p.yaml, line 2: b is no section",
    "a: hello\n": "p.yaml, line 1: a is no section",
    "a:\n  x: 1\n  x: 2\n": 'p.yaml, line 3: found duplicate key "x"',
    "a:\n  x: [1\n": "p.yaml, line 3: ",
    "a:\n\tx: 1\n": "p.yaml, line 2: ",
    "a:\n  x: !!python/object:os.system {}\n": "p.yaml, line 2: YAML's python/object",
    "a:\n  x: !secret 3\n": "p.yaml, line 2: YAML's !secret",
    "a:\n  x: 2019-01-01\n": "p.yaml, line 2: YAML's timestamp",
    "a:\n  x: !!set {y}\n": "p.yaml, line 2: YAML's set",
    "a:\n  x: !!binary aGVsbG8=\n": "p.yaml, line 2: YAML's binary",
    "a:\n  x: 1\n  world_detector: d\n": "p.yaml, line 3: world_detector is called micro_detector since 0.2.0",
    "a:\n  row:\n    parity: true\n": "p.yaml, line 3: parity is called train_embeddings since 0.2.0: rename it",
    "a: {row: {share: softmax}}\n": "p.yaml, line 1: share is called activation since 0.2.0",
    "a:\n  x: 1\n  hinge_on: raw\n": "p.yaml, line 3: hinge_on raw is hinge_on logits since 0.2.0: write that",
    "a: {row: {hinge_on: 'raw'}}\n": "p.yaml, line 1: hinge_on raw is hinge_on logits since 0.2.0",
    "a: {share: own}\n": "p.yaml, line 1: share own is activation sigmoid since 0.2.0: write that",
    "a: {keep: best}\n": "p.yaml, line 1: keep best is restore_best true since 0.2.0: write that",
    "a:\n  x: 1\n  1: x\n": "p.yaml, line 3: YAML's int",
    "1: {x: 1}\n": "p.yaml, line 1: YAML's int",
    "a:\n  x: {y: [1, 2019-01-01]}\n": "p.yaml, line 2: YAML's timestamp",
    "a: {x: *y}\n": "p.yaml, line 1: found undefined alias",
    "a: &a\n  x: *a\n": "p.yaml",
    "a: {x: 1}\n---\nb: {x: 1}\n": "p.yaml, line 2: ",
    "a: {x: \x07}\n": "p.yaml: unacceptable character",
}


@pytest.mark.parametrize("text", MISTAKES)
def test_a_mistake_in_the_file_is_one_sentence_with_its_line(tmp_path, monkeypatch, text):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    with pytest.raises(ValueError) as caught:
        params.read_params("p.yaml")
    assert str(caught.value).startswith(MISTAKES[text]) and "\n" not in str(caught.value)


def test_no_parameter_of_today_has_a_name_of_the_past():
    declared = {name for file in (ROOT / "notebooks").glob("*.ipynb") for name in run.declared(file)}
    keywords = {name for stage in train.STAGES.values() for name in inspect.signature(stage).parameters}  # of the study
    assert not set(params.RENAMED) & (declared | keywords) and set(params.RENAMED.values()) <= declared | keywords


@pytest.mark.parametrize("pair, says", [
    ("fix_rate=1", "fix_rate is called frozen_fraction"), ("share=own", "share own is activation sigmoid"),
    ("hinge_on=raw", "hinge_on raw is hinge_on logits"), ("keep=last", "keep last is restore_best false"),
])  # fmt: skip
def test_an_argument_of_the_past_is_refused_with_the_new_one(pair, says):
    with pytest.raises(ValueError, match=f"{says} since 0.2.0: "):
        params.parse_arguments([pair], {"frozen_fraction": 0.5, "hinge_on": "score", "activation": "sigmoid", "keep": True}, "train_hp")


def test_a_file_that_is_not_utf8_is_named(tmp_path):
    (tmp_path / "p.yaml").write_bytes(b"a: {x: caf\xe9}\n")
    with pytest.raises(ValueError, match="p.yaml is not UTF-8 from byte 11 on"):
        params.read_params(tmp_path / "p.yaml")


def test_what_yaml_has_for_people_stays(tmp_path):
    text = "\ufeffbase: &base {lr: 1e-5, flag: false, no: no}\nstage: {<<: *base, n: 007, none: null, list: [a, {b: 1}], text: ''}\n"
    (tmp_path / "p.yaml").write_text(text, encoding="utf-8")
    read = params.read_params(tmp_path / "p.yaml")
    assert read["stage"] == {"lr": 1e-5, "flag": False, "no": "no", "n": 7, "none": None, "list": ["a", {"b": 1}], "text": ""}


def test_the_command_line_of_training_takes_types_from_params_and_defaults(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    own = {"out": "o", "triplets": "t", "steps": 4, "lr": 1e-3}
    sections = lambda **more: {"shared": {"clip": "local-dir:x", "seed": 1, "scale": "s"}, "train_ict": own | more}
    write = lambda **more: (tmp_path / "params.yaml").write_text(json.dumps(sections(**more)), encoding="utf-8")
    write(beta=1)
    read = lambda *pairs: run.arguments(train.ict, "train_ict", list(pairs), train.KEYWORDS)
    assert read() == {"clip": "local-dir:x", "seed": 1, "out": "o", "triplets": "t", "steps": 4, "lr": 1e-3, "beta": 1.0}
    typed = read(
        "out=007", "clip=a: b", "steps=5", "lr=1e-5", "objective=null", "rounded=true", "restore_best=false", "theta=1.5", "cache=false"
    )
    assert typed | {"out": "007", "clip": "a: b", "steps": 5, "lr": 1e-5, "objective": "null", "rounded": True} == typed
    assert typed["restore_best"] is False and typed["theta"] == 1.5 and typed["cache"] is False
    for pair, says in [("steps=1.5", "steps must be a whole number"), ("rounded=1", "rounded must be true or false"),
                       ("stpes=3", "train_ict has no parameter stpes"), ("betas=[", "betas must be a value of YAML")]:  # fmt: skip
        with pytest.raises(ValueError, match=says):
            read(pair)
    del own["out"], own["steps"]
    write()
    assert read("out=007", "steps=7") | {"out": "007", "steps": 7} == read("out=007", "steps=7")
    write(beta="1e-5")
    with pytest.raises(ValueError, match="params.yaml, train_ict: beta must be a number, not '1e-5': write it like"):
        read()


CODE = [*sorted((ROOT / "lib").rglob("*.py")), *sorted((ROOT / "study").glob("*.py")), *sorted((ROOT / "docs").glob("*.py")),
        *sorted((ROOT / "notebooks").glob("*.ipynb"))]  # fmt: skip


@pytest.mark.parametrize("path", CODE, ids=lambda p: p.stem)
def test_text_is_read_and_written_in_a_named_encoding(path):
    """ruff's PLW1514 knows open() and Path(...); this knows .read_text and .write_text of whatever there is."""
    cells = nbformat.read(path, 4).cells if path.suffix == ".ipynb" else [{"cell_type": "code", "source": path.read_text(encoding="utf-8")}]
    calls = [n for c in cells if c["cell_type"] == "code" for n in ast.walk(ast.parse(c["source"])) if isinstance(n, ast.Call)]
    text = [n for n in calls if isinstance(n.func, ast.Attribute) and n.func.attr in ("read_text", "write_text")]
    assert not [ast.unparse(n) for n in text if not any(k.arg == "encoding" for k in n.keywords)]
