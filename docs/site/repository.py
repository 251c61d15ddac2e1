"""The repository as the pages and files of a site.

A page has the path of its text in the repository, so that links between texts hold as they are: README.md, docs/*.md, notebooks/*. Of a
notebook the executed copies in runs/notebooks are shown, one page each; without any, the notebook itself. Any other file that a text links
to is shown on a page of its own."""

import json
import re
from pathlib import Path

import links
import notebook_pages
import other_pages

RESULTS = ("runs", "models", "figures")  # what `make repro` makes


class Repository:
    """pages (path -> Markdown) and files (path -> bytes, or the Path of the file); listed: pages that belong into the navigation; missing:
    what is not there yet, and the command that makes it."""

    def __init__(self, root: Path):
        self.root, self.pages, self.files, self.missing = root, {}, {}, {}
        self.pipeline = (root / "dvc.yaml").read_text(encoding="utf-8")  # names the notebooks that `make repro` executes
        texts = {path.relative_to(root).as_posix(): path for path in [*root.glob("*.md"), *root.glob("docs/*.md")]}
        self.copies = {path: copies_of(path, root / "runs/notebooks") for path in sorted(root.glob("notebooks/*.ipynb"))}
        self.pages = dict.fromkeys([*texts, *map(page_of, sum(self.copies.values(), []))], "")  # all are there before a link is read
        self.add_figures()
        self.pages |= {f"api/{name}": text for name, text in other_pages.api_pages(root / "lib/icthp")}
        self.listed = list(self.pages)
        for name, path in texts.items():
            self.pages[name] = self.markdown(path.read_text(encoding="utf-8"), name)
        for path in self.copies:
            self.add_notebook(path)

    def markdown(self, text: str, source: str, page: str = "") -> str:
        """The text of the file `source` as a page of the site says it; page: where it stands, if not in the same folder."""
        return links.as_markdown(links.relink(text, source, page or source, self.target_of))

    def target_of(self, path: str) -> str:
        """Where the site has what a link to that path of the repository means; a file is then among the pages or the files."""
        file = self.root / path
        if file in self.copies:
            return page_of(self.copies[file][0])
        if path in self.pages or path in self.files:
            return path
        if not file.exists() and path.partition("/")[0] in RESULTS:
            self.missing[path] = "make repro"
            self.pages[f"{path}.md"] = f"# {path}\n\nIt is not there yet: `make repro` makes it.\n"
        elif file.exists() and file.is_relative_to(self.root):
            text = other_pages.file_page(file, path)
            if text is None:
                self.files[path] = file
                return path
            self.pages[f"{path}.md"] = text
        return f"{path}.md" if f"{path}.md" in self.pages else path

    def add_notebook(self, path: Path) -> None:
        """A page for each of its executed copies, else for itself, and the notebook as it is beside them."""
        name = path.relative_to(self.root).as_posix()
        for copy in self.copies[path]:
            notebook = json.loads(copy.read_text(encoding="utf-8"))
            text, pictures = notebook_pages.page(notebook, copy.stem, lambda text: self.markdown(text, name))
            note = f"[{name}]({path.name}) is the notebook itself."
            if copy == path:
                note += " It has not run here, so that this page shows no results."
                self.missing |= {name: "make repro"} if path.stem in self.pipeline else {}
            self.pages[page_of(copy)] = headed(text, copy.stem.removeprefix(path.stem).strip("-"), note)
            self.files |= {f"notebooks/{copy.stem}/{picture}": content for picture, content in pictures.items()}
        self.files[name] = path

    def add_figures(self) -> None:
        folder, source = self.root / "figures", "notebooks/07_figures.ipynb"
        if not list(folder.glob("*.png")):
            self.missing["figures/"] = "make repro"
        text_of = lambda text: self.markdown(text, source, "figures.md")
        captions = other_pages.captions_of(self.root / "lib/icthp/figures/captions.py")
        self.pages["figures.md"] = other_pages.figures_page(self.root / source, folder, captions, text_of)
        self.files |= {path.relative_to(self.root).as_posix(): path for path in [*folder.glob("*.png"), *folder.glob("*.pdf")]}


def copies_of(notebook: Path, folder: Path) -> list[Path]:
    """The executed copies of a notebook, one for each reward of 05; the notebook itself where none has come to its end."""
    names = re.compile(rf"{re.escape(notebook.stem)}(?!.*(-worker-|\.source\.))(-.+)?\.ipynb")
    copies = [path for path in sorted(folder.glob("*.ipynb")) if names.fullmatch(path.name) and is_complete(path)]
    return copies or [notebook]


def is_complete(copy: Path) -> bool:
    """Has papermill written all of it?"""
    record = json.loads(copy.read_text(encoding="utf-8"))["metadata"].get("papermill", {})
    return not record.get("exception") and record.get("end_time") is not None


def page_of(notebook: Path) -> str:
    return f"notebooks/{notebook.stem}.md"


def headed(text: str, variant: str, note: str) -> str:
    """A page's Markdown with the variant in its title and the note below it."""
    title, rest = re.match(r"(?s)(# [^\n]+)?(.*)", text).groups()
    return f"{title or '# Notebook'}{': ' * bool(variant)}{variant}\n\n{note}\n{rest}"
