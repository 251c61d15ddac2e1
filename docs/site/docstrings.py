"""Docstrings for the API pages: they are plain text, so that Markdown finds no tags and links in them; lines in columns stay lines."""

import re
from collections.abc import Callable

import griffe

COLUMNS = re.compile(r"(?m)(?:^\S(?:.*\S)? {3,}\S.*\n(?: {3,}.*\n)*)+")


def as_markdown(text: str) -> str:
    """A docstring's text with its columns as a code block, the rest without accidental tags and links."""
    text = COLUMNS.sub(lambda block: "```text\n" + block[0] + "```\n", text.rstrip() + "\n")
    return outside_code(text, lambda part: re.sub(r"<(?=[\w/!])|(?<=\])(?=\()", r"\\\g<0>", part))


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """`change` of all but code blocks and `code`."""
    parts = re.split(r"(?ms)(^```.*?^```|^ {4}.*?$|`[^`\n]+`)", text)
    return "".join(part if i % 2 else change(part) for i, part in enumerate(parts))


class PlainText(griffe.Extension):
    """For mkdocstrings: every docstring that griffe finds goes through `as_markdown`."""

    def on_object(self, *, obj, **kwargs):
        if obj.docstring:
            obj.docstring.value = as_markdown(obj.docstring.value)
