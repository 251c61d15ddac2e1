"""Pages that the site makes itself: figures with their captions, the API, files that a text links to."""

import ast
import json
import re
from collections.abc import Iterator
from pathlib import Path

from docstrings import as_markdown
from notebook_pages import fenced

LARGEST = 300_000  # bytes of a file that is shown as a page

# ---- figures ------------------------------------------------------------------------------------------------------


def figures_page(notebook: Path, folder: Path, captions: dict[str, str], text_of=lambda text: text) -> str:
    """The figures and tables of a folder, those with captions first and in their order; before each what the notebook says of it."""
    found = {file.stem for file in folder.glob("*") if file.suffix in (".png", ".md")}
    names = [*(name for name in captions if name in found), *sorted(found - captions.keys())]
    texts = sections(notebook, names)
    parts = [entry(folder, name, captions.get(name, name), text_of(texts.get(name, ""))) for name in names]
    return "\n\n".join(["# Figures and tables", *(parts or ["There is none yet: `make repro` draws them."])]) + "\n"


def entry(folder: Path, name: str, caption: str, text: str) -> str:
    """Heading, text, the picture (it opens at its own size) or the table, caption and PDF."""
    heading = f"## {re.split('[:;]', caption)[0]} {{ #{name} }}\n\n{text}\n\n"
    if not (folder / f"{name}.png").exists():
        return heading + (folder / f"{name}.md").read_text(encoding="utf-8")
    pdf = f" [PDF](figures/{name}.pdf)" if (folder / f"{name}.pdf").exists() else ""
    return f"{heading}[![{caption}](figures/{name}.png)](figures/{name}.png)\n\n*{caption}.*{pdf}"


def sections(notebook: Path, names: list[str]) -> dict[str, str]:
    """Name -> the text, without headings, before the first code cell that has the name in quotes; each text once."""
    found, text = {}, ""
    for cell in json.loads(notebook.read_text(encoding="utf-8"))["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            text = re.sub(r"(?m)^#.*$", "", source).strip()
        elif named := [name for name in names if f'"{name}"' in source and name not in found]:
            found |= dict.fromkeys(named, "") | {named[0]: text}
            text = ""
    return found


def captions_of(module: Path) -> dict[str, str]:
    """The dictionary CAPTIONS of a module, which is not imported."""
    values = [node.value for node in parsed(module).body if isinstance(node, ast.Assign) and ast.unparse(node.targets[0]) == "CAPTIONS"]
    return ast.literal_eval(values[0]) if values else {}


# ---- API ----------------------------------------------------------------------------------------------------------


def api_pages(package: Path) -> Iterator[tuple[str, str]]:
    """(path below api/, Markdown): a list of the package's members, then a page for each of these, its modules one after the other."""
    name, lines = package.name, []
    for path in sorted([*package.glob("*.py"), *package.glob("*/__init__.py")]):
        member = path.parent.name if path.name == "__init__.py" else path.stem
        if path != package / "__init__.py":
            lines.append(f"- [{name}.{member}]({member}.md): {summary(path)}")
            yield f"{member}.md", member_page(f"{name}.{member}", path)
    yield "index.md", "\n".join([f"# API\n\n{summary(package / '__init__.py')}\n", *handed_on(package, name), "", *lines, ""])


def member_page(name: str, path: Path) -> str:
    if path.name != "__init__.py":
        return f"# {name}\n\n::: {name}\n    options: {{show_root_heading: false, show_root_toc_entry: false}}\n"
    modules = "".join(f"\n::: {name}.{file.stem}\n" for file in sorted(path.parent.glob("*.py")) if file.stem != "__init__")
    table = "\n".join(handed_on(path.parent, name))
    return f"# {name}\n\n{as_markdown(ast.get_docstring(parsed(path)))}\n\n{table}\n{modules}"


def handed_on(package: Path, name: str) -> list[str]:
    """A table of the names that a package's stub hands on from its modules, each with its docstring's first sentence."""
    rows = []
    for node in parsed(package / "__init__.pyi").body:
        if isinstance(node, ast.ImportFrom) and node.module:
            texts, module = docstrings(package.joinpath(*node.module.split(".")).with_suffix(".py")), f"{name}.{node.module}"
            rows += [f"| [`{a.asname or a.name}`][{module}.{a.name}] | {texts[a.name]} |" for a in node.names if a.name in texts]
    return ["| name | what it is |", "|---|---|", *rows] if rows else []


def docstrings(path: Path) -> dict[str, str]:
    """Function or class -> its docstring's first sentence, of those that have one."""
    nodes = [node for node in parsed(path).body if isinstance(node, ast.FunctionDef | ast.ClassDef)]
    return {node.name: sentence(text) for node in nodes if (text := ast.get_docstring(node))}


def summary(path: Path) -> str:
    return sentence(ast.get_docstring(parsed(path)) or "")


def sentence(text: str) -> str:
    """The first one, in one line, fit for a cell of a table."""
    text = " ".join(text.partition("\n\n")[0].split())
    return as_markdown(re.split(r"(?<=[a-z)\]`]\.) (?=[A-Z])", text)[0]).strip().replace("|", "\\|")


def parsed(path: Path) -> ast.Module:
    return ast.parse(path.read_text(encoding="utf-8")) if path.exists() else ast.Module([], [])


# ---- files --------------------------------------------------------------------------------------------------------


def file_page(path: Path, name: str) -> str | None:
    """A file as a page, a folder as the list of what is in it; None for what is no text."""
    if path.is_dir():
        return f"# {name}/\n\n" + "".join(f"- `{child.name}{'/' * child.is_dir()}`\n" for child in sorted(path.iterdir()))
    if path.stat().st_size > LARGEST or path.suffix in (".html", ".svg"):
        return None
    try:
        return f"# {name}\n\n" + fenced(path.read_text(encoding="utf-8"), path.suffix.removeprefix(".") or "text") + "\n"
    except UnicodeDecodeError:
        return None
