"""What must hold of the built pages: nothing comes from the network, each link has its target."""

import posixpath
import re
from html.parser import HTMLParser
from pathlib import Path
from urllib.parse import unquote, urlsplit

FETCHED = {("script", "src"), ("link", "href"), ("img", "src"), ("img", "srcset"), ("iframe", "src"), ("video", "src"), ("audio", "src"),
           ("source", "src"), ("source", "srcset"), ("embed", "src"), ("object", "data"), ("form", "action")}  # fmt: skip
IN_STYLE = re.compile(r"@import|url\(\s*['\"]?(?:https?:)?//")
IN_SCRIPT = re.compile(r"(?:import|fetch|importScripts)\s*\(?\s*['\"](?:https?:)?//|\.src\s*=\s*['\"](?:https?:)?//")


class Page(HTMLParser):
    """The links and ids of a page: links are (address, whether the browser fetches it unasked)."""

    def __init__(self, text: str):
        super().__init__()
        self.links, self.ids, self.inside, self.code = [], set(), "", []
        self.feed(text)

    def handle_starttag(self, tag, attributes):
        self.inside = tag
        for name, value in attributes:
            if name in ("id", "name") and value:
                self.ids.add(value)
            if name == "style":
                self.code.append(value or "")
            if (tag, name) in FETCHED or (tag, name) == ("a", "href"):
                self.links.append((value or "", (tag, name) in FETCHED))

    def handle_endtag(self, tag):
        self.inside = ""

    def handle_data(self, data):
        if self.inside in ("style", "script"):
            self.code.append(data)


def problems(folder: Path) -> list[str]:
    """A line for each thing that is wrong with the site in that folder."""
    pages = {path.relative_to(folder).as_posix(): Page(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.html"))}
    lines = [f"{name}: {wrong}" for name, page in pages.items() for address, is_fetched in page.links
             if (wrong := problem(address, is_fetched, name, pages, folder))]  # fmt: skip
    lines += [f"{name}: a style or script of its own fetches {match[0]}..." for name, page in pages.items()
              if (match := re.search(f"{IN_STYLE.pattern}|{IN_SCRIPT.pattern}", "\n".join(page.code)))]  # fmt: skip
    styles = {path: IN_STYLE.search(path.read_text(encoding="utf-8")) for path in sorted(folder.rglob("*.css"))}
    return lines + [f"{path.relative_to(folder)} fetches {match[0]}..." for path, match in styles.items() if match]


def problem(address: str, is_fetched: bool, name: str, pages: dict[str, Page], folder: Path) -> str:
    """What is wrong with one link of a page, "" if nothing is."""
    parts = urlsplit(address)
    if parts.scheme in ("data", "mailto", "javascript"):
        return ""
    if parts.scheme or parts.netloc:
        return f"fetches {address}" if is_fetched else ""
    target = posixpath.normpath(posixpath.join(posixpath.dirname(name), unquote(parts.path))) if parts.path else name
    if not (folder / target).is_file():
        return f"{address} leads nowhere"
    if parts.fragment and target in pages and unquote(parts.fragment) not in pages[target].ids:
        return f"{address} leads to no heading of {target}"
    return ""
