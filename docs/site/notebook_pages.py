"""A notebook as Markdown: text, code and outputs; parameters and solutions collapsed, pictures in files of their own."""

import base64
import re
from collections.abc import Iterator

COLLAPSED = {"injected-parameters": "Parameters of this run", "parameters": "Parameters", "solution": "Solution"}
PICTURES = {"image/png": "png", "image/jpeg": "jpg", "image/gif": "gif", "image/svg+xml": "svg"}
ANSI = re.compile(r"\x1b\[[0-9;]*m")


def page(notebook: dict, stem: str, text_of=lambda text: text) -> tuple[str, dict[str, bytes]]:
    """Markdown of a notebook, and its pictures: name -> bytes, to lie in a folder `stem` beside the page. text_of: what becomes of the
    text of a Markdown cell."""
    pictures, parts, heading = {}, [], stem
    widgets = notebook["metadata"].get("widgets", {}).get("application/vnd.jupyter.widget-state+json", {}).get("state", {})
    for cell in notebook["cells"]:
        source = "".join(cell["source"])
        if cell["cell_type"] == "markdown":
            heading = (re.findall(r"(?m)^#+ (.+)$", source) or [heading])[-1]
            parts.append(text_of(source))
        elif cell["cell_type"] == "code" and source.strip():
            shown = [text for output in cell["outputs"] for text in shown_output(output, widgets, pictures, stem, heading)]
            parts += code_cell(cell, source, shown)
    return "\n\n".join(parts) + "\n", pictures


def code_cell(cell: dict, source: str, shown: list[str]) -> list[str]:
    """Code and outputs; of a solution both are collapsed, of parameters and of hidden code the code is."""
    code, tags = fenced(source, "python"), cell["metadata"].get("tags", [])
    title = next((title for tag, title in COLLAPSED.items() if tag in tags), None)
    if title is None and cell["metadata"].get("jupyter", {}).get("source_hidden"):
        title = "Code"
    if "solution" in tags:
        return [details("\n\n".join([code, *shown]), title, "solution")]
    return [details(code, title, "code") if title else code, *shown]


def details(markdown: str, title: str, kind: str) -> str:
    return f'<details class="{kind}" markdown="1"><summary>{title}</summary>\n\n{markdown}\n\n</details>'


def fenced(text: str, language: str) -> str:
    """A code block, fenced longer than any row of backticks in it."""
    fence = "`" * max(3, 1 + max(map(len, re.findall("`+", text)), default=0))
    return f"{fence}{language}\n{text.rstrip()}\n{fence}"


# ---- outputs ------------------------------------------------------------------------------------------------------


def shown_output(output: dict, widgets: dict, pictures: dict, stem: str, heading: str) -> Iterator[str]:
    """An output as pieces of Markdown; a new picture is put into `pictures`."""
    if output["output_type"] == "stream":
        if output["name"] == "stdout":
            yield fenced(ANSI.sub("", "".join(output["text"])), "text")
    elif output["output_type"] == "error":
        yield fenced(ANSI.sub("", "\n".join(output["traceback"])), "text")
    elif view := output["data"].get("application/vnd.jupyter.widget-view+json"):
        saved = [text for still in stills(view["model_id"], widgets) for text in shown_output(still, widgets, pictures, stem, heading)]
        yield from [*saved, "*As it was saved; it moves where the notebook runs.*"] if saved else []
    else:
        yield richest(output, pictures, stem, heading)


def richest(output: dict, pictures: dict, stem: str, heading: str) -> str:
    """The best of an output's forms."""
    data = {kind: value if isinstance(value, dict) else "".join(value) for kind, value in output["data"].items()}
    for kind, suffix in PICTURES.items():
        if kind in data:
            name = f"{len(pictures) + 1}.{suffix}"
            pictures[name] = data[kind].encode() if suffix == "svg" else base64.b64decode(data[kind])
            return f"![{alternative(heading)}]({stem}/{name})"
    if "text/html" in data:
        return f'<div class="output">{re.sub(r"(?s)<style scoped.*?</style>", "", data["text/html"])}</div>'
    if "text/markdown" in data or "text/latex" in data:
        return data.get("text/markdown") or data["text/latex"]
    return fenced(data.get("text/plain", ""), "text")


def alternative(heading: str) -> str:
    """What stands for a picture that is not seen."""
    return "Figure of: " + re.sub(r"[\[\]]", "", heading)


def stills(model_id: str, widgets: dict) -> Iterator[dict]:
    """What a widget and its children show, as outputs without a kernel; progress bars and controls show nothing."""
    model = widgets.get(model_id, {})
    state, name = model.get("state", {}), model.get("model_name", "")
    children = [child.removeprefix("IPY_MODEL_") for child in state.get("children", [])]
    if any(widgets.get(child, {}).get("model_name") == "FloatProgressModel" for child in children):
        return
    if name == "OutputModel":
        yield from state.get("outputs", [])
    if name == "ImageModel":
        kind = f"image/{state.get('format', 'png')}"
        yield from ({"output_type": "display_data", "data": {kind: buffer["data"]}} for buffer in model.get("buffers", []))
    if name == "HTMLModel":
        yield {"output_type": "display_data", "data": {"text/html": state.get("value", "")}}
    for child in children:
        yield from stills(child, widgets)
