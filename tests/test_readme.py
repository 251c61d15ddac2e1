"""What the README promises is there: its numbers come from the template, its tests, files, targets and names exist."""

import ast
import importlib
import re

import pytest

from conftest import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")
TEMPLATE = (ROOT / "docs/README.md.j2").read_text(encoding="utf-8")


def test_it_is_the_templates_text():
    """Apart from values within a line and rows of tables, which the template fills in; a change in one of the two files only is found."""
    at, depth = 0, 0
    filled = None
    fits = {
        None: lambda gap: not gap,
        "value": lambda gap: gap and "\n" not in gap,
        "rows": lambda gap: gap and all(line.startswith("|") for line in gap.splitlines()),
    }
    for part in re.split(r"(\{\{.*?\}\}|\{%.*?%\}\n?)", TEMPLATE, flags=re.S):
        depth += part.startswith("{% for") - part.startswith("{% endfor")
        if depth or part.startswith(("{{", "{% endfor")):
            filled = "value" if part.startswith("{{") and not depth else "rows"
        else:
            found = README.find(part, at)
            assert found >= at and fits[filled](README[at:found]), f"README.md lacks, after {README[at - 60 : at]!r}: {part[:200]!r}"
            at, filled = found + len(part), None
    assert at == len(README)


def test_named_tests_exist():
    written = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    missing = [name for name in re.findall(r"`(test_\w+)`", README) if f"def {name}(" not in written]
    assert not missing


def test_linked_files_and_targets_exist():
    links = re.findall(r"\]\((?!http)([^)#]+)\)", README)
    assert links and not [link for link in links if not (ROOT / link).exists()]
    targets = set(re.findall(r"(?:^|`)make (\w+)", README, re.M))
    assert targets and targets <= set(re.findall(r"^(\w+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("snippet", re.findall(r"```python\n(.*?)```", README, re.S), ids=lambda s: s.split("\n")[0][:40])
def test_snippets_use_names_that_exist(snippet):
    tree = ast.parse(snippet)
    imported = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            imported |= {alias.name: importlib.import_module(alias.name) for alias in node.names if alias.name == "icthp"}
        if isinstance(node, ast.ImportFrom) and node.module.partition(".")[0] == "icthp":
            imported |= {alias.name: importlib.import_module(f"{node.module}.{alias.name}") for alias in node.names}
    used = {(node.value.id, node.attr) for node in ast.walk(tree) if isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name)}
    missing = [f"{module}.{name}" for module, name in used if module in imported and not hasattr(imported[module], name)]
    assert imported and not missing
