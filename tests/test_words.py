"""The field's words: no name that the project defines is a private word of the first version, in its old sense.

Names are read from the source of the library, the notebooks and the study: functions, classes, arguments, variables, attributes that are
set, string keys, parts of metric keys, parameters. docs/renames.md has the same words for a reader."""

import ast
import json
import re
from collections.abc import Iterator
from fnmatch import fnmatch
from pathlib import Path

import pytest

from conftest import ROOT
from source import trees

SOURCES = ("lib/icthp/**/*.py", "study/*.py", "notebooks/*.ipynb")

OLD = """
told                                cond, config, args
away                                anchor_loss; residual in a loss
kept                                valid
seen                                image_states, stats
said                                attributes, message
look                                sample_kwargs; measure
looks                               snapshots
eyes                                load_detector
reader                              detector
lens                                clip_scorer
kin                                 reward_parts
others                              monitor_scorers
watch_every, watch_prompts          eval_every, eval_prompts
learnt, judged                      train_idx, val_idx
held                                is_val, held_out
judge, stale                        validate, should_stop
fix_rate                            frozen_fraction
parity                              train_embeddings
raw                                 logits
won, lost                           chosen, rejected
cut                                 is_truncated
split                               decompose
table                               score_matrix
unit                                score_scale
images                              image_features
Shared                              HubMixin
MADE_BY                             STAGE_OF
legacy, spoil                       plant_faults, corrupt
DISCERNMENT                         BT_SCALE
described                           geneval_metadata
units_contained                     prompt_coverage
usable                              filter_detections
near_miss                           hard_negative
lv                                  lv_samples
reforward                           recompute_last_steps
interval                            bootstrap_ci
flat, keyed                         metric_with_ci, ci_keys
paired                              permutation_test
assess                              evaluate_generator
wins                                pairwise_accuracy
right                               correct
spread                              diversity; format_ci
loss_at                             loss_fn
keep                                restore_best
share                               activation
recipe                              preprocessing; config
wide                                upcast
slope                               grad_cosine
mass, world                         pair_weight, world_size
choose                              select_impl
race                                benchmark
fit_square                          resize_center_crop
upright                             exif_transpose
problem, broken                     decode_error, label_error
stored                              cached
alike, planted                      match_pair, perturb
dots, show                          errorbar, image_grid
stamp                               write_table
few, many, ways, often, words       what they hold
"""

# Where a word was private; elsewhere it is an ordinary one. Each place is "path:kind", kind one of those that `names` gives.
PRIVATE_IN = {
    "images": "lib/icthp/losses.py:arg lib/icthp/kernels/*:arg",  # features there, pictures elsewhere
    "split": "lib/icthp/scorers/clip.py:def",  # of a data set, of a string
    "table": "lib/icthp/scorers/*:def",
    "unit": "lib/icthp/scorers/*:name",  # of a prompt, of time
    "others": "notebooks/05*:name lib/icthp/tuning/monitor.py:*",
    "slope": "lib/icthp/kernels/*:*",  # of a line
    "mass": "lib/icthp/kernels/*:*",
    "world": "lib/icthp/kernels/*:*",
    "held": "*:def *:arg *:name *:key",  # metrics of held_out prompts
    "lv": "*:def *:arg *:name *:parameter",  # the metric lv_samples
    "keep": "*:arg",  # of a file
    "share": "lib/icthp/losses.py:arg lib/icthp/kernels/*:arg",  # a part of a whole
    "recipe": "lib/icthp/[!d]*:*",  # of a refiner
    "described": "*:def",  # latents
    "near_miss": "*:def",  # a column of the data set
    "flat": "*:def",  # a tensor
    "wide": "*:def",
    "problem": "lib/icthp/images.py:* lib/icthp/data/*:*",
    "broken": "lib/icthp/images.py:* lib/icthp/data/*:*",
    "stamp": "*:def",
}

# Where a word has another sense.
OTHER_SENSE = {
    **dict.fromkeys(("fix_rate", "parity", "reforward", "watch_every", "watch_prompts"), "lib/icthp/params.py:key"),  # refused by RENAMED
    "reader": "lib/icthp/tables.py:name",  # of a CSV file
    "right": "lib/icthp/evaluation/geneval.py:name notebooks/07*:name",  # a side
    "cut": "lib/icthp/evaluation/geneval.py:name lib/icthp/evaluation/gallery*.py:*",  # an object cut out; a column of its table
    "lost": "lib/icthp/data/refine.py:name lib/icthp/tuning/lora.py:name",  # missing
    "upright": "lib/icthp/kernels/resize.py:def",  # a tensor whose dim comes first
    "words": "lib/icthp/data/*:*",  # of a prompt
}


def new_terms() -> dict[str, str]:
    """Old word -> the term that replaces it."""
    terms = {}
    for line in OLD.strip().splitlines():
        words, new = re.split(r"\s{2,}", line)
        terms |= dict.fromkeys(words.split(", "), new)
    return terms


def names(tree: ast.Module) -> Iterator[tuple[str, str]]:
    """(kind, name) of all that a file defines: def, arg, name (variables and attributes), key (of a dictionary), metric (a part of a
    metric's key)."""
    for node in ast.walk(tree):
        match node:
            case ast.FunctionDef(name=name) | ast.ClassDef(name=name):
                yield "def", name
            case ast.arg(arg=name):
                yield "arg", name
            case ast.Name(id=name, ctx=ast.Store()) | ast.Attribute(attr=name, ctx=ast.Store()) | ast.ExceptHandler(name=str(name)):
                yield "name", name
            case ast.Dict(keys=keys):
                yield from (("key", key.value) for key in keys if is_text(key))
            case ast.Subscript(slice=ast.Constant(value=str(key))):
                yield "key", key
            case ast.Call(func=ast.Name(id="dict"), keywords=keywords):
                yield from (("key", keyword.arg) for keyword in keywords if keyword.arg)
        if is_of_metrics(node):
            yield from (("metric", part) for text in texts(node) for part in text.split("_"))


def is_text(node: ast.AST | None) -> bool:
    return isinstance(node, ast.Constant) and isinstance(node.value, str)


def texts(node: ast.AST) -> list[str]:
    """All strings in a statement, the literal parts of f-strings among them."""
    return [n.value for n in ast.walk(node) if is_text(n)]


def is_of_metrics(node: ast.AST) -> bool:
    """Does the statement add to a dictionary `metrics`?"""
    match node:
        case ast.Assign(targets=[target]) | ast.AugAssign(target=target):
            target = target.value if isinstance(target, ast.Subscript) else target
            return isinstance(target, ast.Name) and target.id == "metrics"
    return False


def parameters(root: Path) -> Iterator[tuple[str, str]]:
    """Path and name of each parameter in the files of parameters."""
    for path in [root / "params.yaml", *sorted(root.glob("profiles/*.yaml")), root / "study/params.yaml"]:
        if path.exists():
            for name in re.findall(r"(?m)^\s*(\w+):", path.read_text(encoding="utf-8")):
                yield path.relative_to(root).as_posix(), name


def old_words(root: Path) -> list[str]:
    """One line for each name that is an old word in its old sense: where it stands, what it is, the new term."""
    found = [(path, *name) for path, tree in trees(root, *SOURCES).items() for name in names(tree)]
    found += [(path, "parameter", name) for path, name in parameters(root)]
    terms = new_terms()
    lines = {
        f"{path}: {kind} {name!r} -> {terms[word]}" for path, kind, name in found if is_old(word := name.strip("_"), path, kind, terms)
    }
    return sorted(lines)


def is_old(word: str, path: str, kind: str, terms: dict[str, str]) -> bool:
    stands_in = lambda places: any(fnmatch(f"{path}:{kind}", place) for place in places.split())
    return word in terms and stands_in(PRIVATE_IN.get(word, "*")) and not stands_in(OTHER_SENSE.get(word, ""))


def test_no_name_is_an_old_word():
    lines = old_words(ROOT)
    assert not lines, "\n" + "\n".join(lines)


def test_every_exception_is_a_word_of_the_list():
    assert PRIVATE_IN.keys() | OTHER_SENSE.keys() <= new_terms().keys()


@pytest.mark.parametrize("code, kind", [
    ("def told(x): pass", "def"), ("class Shared: pass", "def"), ("f = lambda told: told", "arg"), ("def f(*, told=0): pass", "arg"),
    ("_told = 1", "name"), ("for told, x in y: pass", "name"), ("self.told = 1", "name"), ("a = [told for told in y]", "name"),
    ("class A:\n    told: int", "name"), ("with x as told: pass", "name"), ("a = {'told': 1}", "key"), ("a['told'] = 1", "key"),
    ("a = dict(told=1)", "key"), ("metrics = {'told_n': 1}", "metric"), ("metrics |= f(f'{x}_told_{y}', z)", "metric"),
    ("metrics[f'{x}_told'] = 1", "metric"),
])  # fmt: skip
def test_an_old_word_is_found_wherever_a_name_is_defined(code, kind, tmp_path):
    (tmp_path / "lib/icthp").mkdir(parents=True)
    (tmp_path / "lib/icthp/a.py").write_text(code, encoding="utf-8")
    assert [line.split(" ")[1] for line in old_words(tmp_path)] == [kind]


def test_old_words_of_notebooks_and_parameters_are_found(tmp_path):
    (tmp_path / "notebooks").mkdir()
    cells = [{"cell_type": "code", "source": ["%matplotlib inline\n", "lens = 1"]}, {"cell_type": "markdown", "source": ["kin = 1"]}]
    (tmp_path / "notebooks/05.ipynb").write_text(json.dumps({"cells": cells}), encoding="utf-8")
    (tmp_path / "params.yaml").write_text("draft:\n  watch_every: 2  # lens: of old\n", encoding="utf-8")
    assert old_words(tmp_path) == [
        "notebooks/05.ipynb: name 'lens' -> clip_scorer",
        "params.yaml: parameter 'watch_every' -> eval_every, eval_prompts",
    ]


def test_other_senses_are_left_alone(tmp_path):
    (tmp_path / "lib/icthp/tuning").mkdir(parents=True)
    code = "def read(source, split): return source.table(share=1).right\ntable = {'near_miss': 1}\nworld = x.split(raw=2)\n"
    (tmp_path / "lib/icthp/tuning/a.py").write_text(code, encoding="utf-8")
    assert not old_words(tmp_path)
