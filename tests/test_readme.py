"""What the README and docs/ promise is there: numbers come from the templates, and tests, files, targets and names exist."""

import ast
import importlib
import re

import pytest

from conftest import ROOT

TEMPLATES = sorted((ROOT / "docs").glob("*.md.j2"))
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md"))]
TEXT = {page: page.read_text(encoding="utf-8") for page in PAGES}
SNIPPETS = [(page.name, snippet) for page, text in TEXT.items() for snippet in re.findall(r"```python\n(.*?)```", text, re.S)]


def page_of(template):
    return (ROOT if template.name == "README.md.j2" else ROOT / "docs") / template.stem


@pytest.mark.parametrize("template", TEMPLATES, ids=lambda path: path.stem)
def test_a_page_is_its_templates_text(template):
    """Apart from values within a line and rows of tables, which the template fills in; a change in one of the two files only is found."""
    page, at, depth = page_of(template).read_text(encoding="utf-8"), 0, 0
    filled = None
    fits = {
        None: lambda gap: not gap,
        "value": lambda gap: gap and "\n" not in gap,
        "rows": lambda gap: gap and all(line.startswith("|") for line in gap.splitlines()),
    }
    for part in re.split(r"(\{\{.*?\}\}|\{%.*?%\}\n?)", template.read_text(encoding="utf-8"), flags=re.S):
        depth += part.startswith("{% for") - part.startswith("{% endfor")
        if depth or part.startswith(("{{", "{% endfor")):
            filled = "value" if part.startswith("{{") and not depth else "rows"
        else:
            found = page.find(part, at)
            assert found >= at and fits[filled](page[at:found]), f"the page lacks, after {page[at - 60 : at]!r}: {part[:200]!r}"
            at, filled = found + len(part), None
    assert at == len(page)


def test_the_readme_is_a_door():
    assert len(TEXT[ROOT / "README.md"].split()) <= 900


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_named_tests_exist(page):
    written = "".join(file.read_text(encoding="utf-8") for file in (ROOT / "tests").rglob("test_*.py"))
    missing = [name for name in re.findall(r"`(test_\w+)`", TEXT[page]) if f"def {name}(" not in written]
    assert not missing


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_linked_files_and_targets_exist(page):
    links = re.findall(r"\]\((?!http)([^)#]+)\)", TEXT[page])
    assert not [link for link in links if not (page.parent / link).exists()]
    targets = set(re.findall(r"(?:^|`)make ([\w-]+)", TEXT[page], re.M))
    assert targets <= set(re.findall(r"^([\w-]+):", (ROOT / "Makefile").read_text(encoding="utf-8"), re.M))


@pytest.mark.parametrize("page", PAGES, ids=lambda path: path.name)
def test_linked_sections_exist(page):
    for link, section in re.findall(r"\]\((?!http)([^)#]*)#([^)]+)\)", TEXT[page]):
        headings = re.findall(r"^#+ (.+)$", TEXT[(page.parent / link).resolve() if link else page], re.M)
        assert section in {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


@pytest.mark.parametrize("page, snippet", SNIPPETS)
def test_snippets_use_names_that_exist(page, snippet):
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
