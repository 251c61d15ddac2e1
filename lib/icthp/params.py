"""Values with their types, of params.yaml and of name=value pairs on a command line: a declared default says what is text, a whole number,
a number or true and false. A text is taken as it stands; anything else is read as YAML 1.2, as dvc does, so that 1e-5 is a number."""

from collections.abc import Iterator
from pathlib import Path

from ruamel.yaml import YAML
from ruamel.yaml.error import YAMLError
from ruamel.yaml.nodes import MappingNode, Node

KINDS = {  # of a default -> what a value must be, and the remedy in params.yaml
    str: ("a text", "put it in quotes"),
    bool: ("true or false", "write one of the two without quotes"),
    int: ("a whole number", "write it without a point and without quotes"),
    float: ("a number", "write it like 0.001 or 1.0e-3, without quotes"),
}
PLAIN = ("str", "int", "float", "bool", "null", "seq", "map")  # the tags of YAML that a value may have
NAMES = ("str", "merge")  # and a name
RENAMED = {  # since version 0.2.0
    "checks": "micro_checks",
    "estimate_scenes": "micro_estimate_scenes",
    "fix_rate": "frozen_fraction",
    "lv": "lv_samples",
    "paradox_scenes": "micro_scenes",
    "parity": "train_embeddings",
    "reforward": "recompute_last_steps",
    "scenes_count": "micro_scenes",
    "share": "activation",
    "small_clip_batch": "micro_clip_batch",
    "small_clip_steps": "micro_clip_steps",
    "voted_scenes": "micro_voted_scenes",
    "watch_every": "eval_every",
    "watch_prompts": "eval_prompts",
    "world_detector": "micro_detector",
}
RENAMED_VALUES = {  # since then too, as they are written now
    ("activation", "own"): ("activation", "sigmoid"),
    ("hinge_on", "raw"): ("hinge_on", "logits"),
    ("keep", "best"): ("restore_best", "true"),
    ("keep", "last"): ("restore_best", "false"),
    ("share", "own"): ("activation", "sigmoid"),
}


UNSET = "???"  # stands in a profile for what is the user's to name


def read_params(file="params.yaml", needs_all: bool = True) -> dict[str, dict]:
    """The sections of a file like params.yaml. ValueError names the file and the line of what is no YAML, of a key that comes twice, of a
    section that is no mapping, of what has been renamed (`RENAMED`, `RENAMED_VALUES`), and of what is neither text, number, true, false,
    null nor a list or mapping of them; with needs_all, whatever section is asked for, also every parameter that is not set (`UNSET`)."""
    try:
        text = Path(file).read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise ValueError(f"{file} is not UTF-8 from byte {error.start + 1} on: save it as UTF-8") from error
    root, params = _load(text, file)
    if not isinstance(root, MappingNode):
        raise ValueError(f"{file} {'is empty' if root is None else 'has no sections'}: it must hold sections of `name: value`")
    for name, section in root.value:
        if not isinstance(section, MappingNode):
            raise ValueError(
                f"{file}, line {name.start_mark.line + 1}: {name.value} is no section: it must hold `name: value` pairs, or {{}}"
            )
        _refuse_renamed_below(section, file)
    if needs_all and (missing := unset(params)):
        raise ValueError(f"{file}: set {', '.join(missing)} in the place of {UNSET}: the words behind each say what it is")
    return params


def unset(params: dict[str, dict]) -> list[str]:
    """SECTION.NAME of each parameter that is not set."""
    return [f"{section}.{name}" for section, values in params.items() for name, value in values.items() if UNSET in str(value)]


def _refuse_renamed_below(section: MappingNode, file) -> None:
    """In the section and in the mappings that it holds, as the rows of study/params.yaml."""
    for mapping, _ in _nodes(section):
        for key, value in mapping.value if isinstance(mapping, MappingNode) else ():
            _refuse_renamed(key.value, value.value, f"{file}, line {key.start_mark.line + 1}: ")


def _refuse_renamed(name: str, value, where: str = "") -> None:
    if isinstance(value, str) and (name, value) in RENAMED_VALUES:
        new_name, new_value = RENAMED_VALUES[name, value]
        raise ValueError(f"{where}{name} {value} is {new_name} {new_value} since 0.2.0: write that")
    if name in RENAMED:
        raise ValueError(f"{where}{name} is called {RENAMED[name]} since 0.2.0: rename it")


def _load(text: str, where) -> tuple[Node | None, object]:
    """YAML's nodes, which know their lines, and its value."""
    try:
        root = YAML(typ="safe", pure=True).compose(text)
        for node, kinds in _nodes(root) if root else ():
            kind = str(node.tag).removeprefix("tag:yaml.org,2002:")
            if kind not in kinds:
                raise ValueError(f"{where}, line {node.start_mark.line + 1}: YAML's {kind} stands where only {', '.join(kinds)} may; "
                                 "put it in quotes if it is meant as text")  # fmt: skip
        return root, YAML(typ="safe", pure=True).load(text)
    except (YAMLError, RecursionError) as error:
        mark = getattr(error, "problem_mark", None)
        line = f", line {mark.line + 1}" if mark else ""
        problem = getattr(error, "problem", None) or str(error)
        raise ValueError(f"{where}{line}: {' '.join(problem.split())}") from error


def _nodes(node: Node, kinds=PLAIN) -> Iterator[tuple[Node, tuple]]:
    """Each node from here on and what it may be: a value, or a name, which is text."""
    yield node, kinds
    for part in node.value if isinstance(node.value, list) else ():
        if isinstance(part, tuple):
            yield part[0], NAMES
        yield from _nodes(part[1] if isinstance(part, tuple) else part)


def coerce(name: str, default, value, where: str = ""):
    """`value` as the type that its declared default has; a whole number may stand for a number, and a list of texts for one text with
    commas between them. ValueError names the parameter, its type and the value. Any value fits a default of another type, as None."""
    kind = type(default)
    if kind is str and isinstance(value, list) and all(isinstance(part, str) and "," not in part for part in value):
        return ",".join(value)
    if kind is float and type(value) is int:
        return float(value)
    if kind in KINDS and type(value) is not kind:
        raise ValueError(f"{where}{name} must be {KINDS[kind][0]}, not {value!r}: {KINDS[kind][1]}")
    return value


def parse_arguments(pairs: list[str], defaults: dict, taker) -> dict:
    """name=value pairs of a command line, each value by the type of its default: a text is taken as it stands, anything else is read as
    YAML. ValueError names the parameter that `taker` does not have, or that the value does not fit, or the new name of a renamed one."""
    values = {}
    for pair in map(_utf8, pairs):
        name, equals, text = pair.partition("=")
        if not equals:
            raise ValueError(f"{pair!r} is no parameter; write name=value")
        if name not in defaults or (name, text) in RENAMED_VALUES:
            _refuse_renamed(name, text)
            raise ValueError(f"{taker} has no parameter {name}; it has {', '.join(defaults)}")
        values[name] = text if isinstance(defaults[name], str) else _read(name, defaults[name], text)
    return values


def _read(name: str, default, text: str):
    try:
        return coerce(name, default, _load(text, name)[1])
    except ValueError as error:
        wanted = KINDS.get(type(default), ("a value of YAML",))[0]
        raise ValueError(f"{name} must be {wanted}, not {text!r}") from error


def _utf8(argument: str) -> str:
    """An argument as it was typed, whatever the locale made of its bytes."""
    try:
        return argument.encode("utf-8", "surrogateescape").decode("utf-8")
    except UnicodeDecodeError as error:
        raise ValueError(f"{argument!r} is not UTF-8") from error
