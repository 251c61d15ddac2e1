"""Links of the repository's texts, as the site needs them: a link to a notebook becomes one to its page, a link to any other file one to a
page that shows the file."""

import posixpath
import re
from collections.abc import Callable
from urllib.parse import unquote

LINK = re.compile(r"(\]\(|\b(?:src|href)=\")([^()\s\"]+)")
FENCE = re.compile(r"^ *(`{3,}|~{3,}).*?^ *\1`*\s*?$", re.M | re.S)
ITEM = r"(?:[-*+]|1\.) "


def relink(text: str, source: str, page: str, target_of: Callable[[str], str]) -> str:
    """The text of the repository's file `source`, as it stands on `page`, with each link to a path of the repository exchanged for the one
    that `target_of` gives for it; what looks like a link in a code block stays, and so do links to other places and to anchors."""

    def exchange(match: re.Match) -> str:
        opening, (address, hash_, anchor) = match[1], match[2].partition("#")
        if not address or re.match(r"[a-z][a-z0-9+.-]*:|/", address):
            return match[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(source), unquote(address)))
        target = posixpath.relpath(target_of(path), posixpath.dirname(page) or ".")
        if opening != "](":  # mkdocs exchanges pages for their addresses in Markdown alone
            target = re.sub(r"(^|/)README\.md$", r"\1index.md", target).removesuffix(".md") + ".html" * target.endswith(".md")
        return opening + target + hash_ + anchor

    return outside_code(text, lambda part: LINK.sub(exchange, part))


def as_markdown(text: str) -> str:
    """GitHub's Markdown as Python-Markdown reads it: an empty line before a list or a table, Markdown in <details>, a bar in a formula in a
    table."""

    def loosen(part: str) -> str:
        part = re.sub(rf"(?m)^(?!\s*{ITEM}|\s|[|>#]|$)(.+)\n(?={ITEM}|\|)", r"\1\n\n", part)
        part = re.sub(r"<details(?=[ >])", '<details markdown="1"', part).replace("<summary>", '<summary markdown="span">')
        return re.sub(r"(?m)^\|.*", lambda row: re.sub(r"\$[^$]+\$", bars, row[0]), part)

    def bars(formula: re.Match) -> str:
        return formula[0].replace("\\|", "\\vert ")

    return outside_code(text, loosen)


def outside_code(text: str, change: Callable[[str], str]) -> str:
    """`change` of all that stands between code blocks."""
    parts, end = [], 0
    for block in FENCE.finditer(text):
        parts += [change(text[end : block.start()]), block[0]]
        end = block.end()
    return "".join([*parts, change(text[end:])])
