"""mkdocs's hooks: the repository's texts and results become the site's pages, formulas MathML; a link without a target, or anything that
would be fetched from the network, ends the build."""

import html
import re
from pathlib import Path

import page_checks
from math_core import LatexError, LatexToMathML
from mkdocs.exceptions import PluginError
from mkdocs.plugins import event_priority
from mkdocs.structure.files import File, Files
from mkdocs.structure.nav import Link
from repository import Repository

FORMULA = re.compile(r'<(span|div) class="arithmatex">\\[(\[](.*?)\\[)\]]</\1>', re.S)
ASSETS = ("style.css", "iframe-worker.js", "math.woff2", "math.OFL.txt")
PLAYGROUND = "playground.html"  # `make site` writes it into the site before mkdocs empties the folder
built = {}


def on_config(config):
    root, playground = Path(config.config_file_path).parent, Path(config.site_dir) / PLAYGROUND
    config.theme.static_templates.discard("404.html")  # its links hold at the root of a server alone
    built["repository"] = repository = Repository(root)
    if playground.exists():
        repository.files[PLAYGROUND] = playground.read_bytes()
    else:
        repository.missing[PLAYGROUND] = "make site"
    repository.files |= {f"docs/site/{name}": root / "docs/site" / name for name in ASSETS}
    return config


def on_files(files, config):
    repository = built["repository"]
    made = [File.generated(config, name, content=text) for name, text in repository.pages.items()]
    made += [
        File.generated(config, name, **({"content": of} if isinstance(of, bytes) else {"abs_src_path": str(of)}))
        for name, of in repository.files.items()
    ]
    config.nav = unfolded(config.nav, repository.listed)
    return Files([*(file for file in files if file.src_dir != config.docs_dir), *made])


def unfolded(nav: list, pages: list[str]) -> list:
    """mkdocs.yml's navigation with each folder exchanged for its pages that are named nowhere, without the names of pages that are not
    there."""
    named = set(re.findall(r"[\w/-]+\.md", str(nav)))
    order = lambda page: (not page.endswith("/index.md"), page)

    def pages_of(item: str | list) -> str | list:
        if isinstance(item, list):
            return [page for part in item for page in (pages_of(part) if part.endswith("/") else [part] if part in pages else [])]
        return sorted({page for page in pages if page.startswith(item)} - named, key=order) if item.endswith("/") else item

    return [{title: pages_of(value) for title, value in item.items()} for item in nav]


def on_nav(nav, config, files):
    if PLAYGROUND in built["repository"].files:
        nav.items.insert(1, Link("Playground", PLAYGROUND))
    return nav


def on_page_content(text, page, config, files):
    """Formulas as MathML, which browsers draw by themselves; the search leaves the API's source code out."""
    text = text.replace('<details class="mkdocstrings-source"', '<details class="mkdocstrings-source" data-search-exclude')
    try:
        return FORMULA.sub(mathml, text)
    except LatexError as error:
        raise PluginError(f"{page.file.src_uri}: {error}") from error


def mathml(match: re.Match) -> str:
    tag, latex = match.groups()
    formula = LatexToMathML(fancy_error=False).convert_with_local_state(html.unescape(latex).strip(), displaystyle=tag == "div")
    return f'<{tag} class="formula">{formula}</{tag}>'


@event_priority(-200)  # after all that writes
def on_post_build(config):
    wrong = page_checks.problems(Path(config.site_dir))
    if wrong:
        raise PluginError("\n".join(wrong))
    print(summary(built["repository"].missing, config.site_dir))


def summary(missing: dict[str, str], folder: str) -> str:
    """One sentence on what is missing, and where the site lies."""
    commands = {command: sorted(name for name in missing if missing[name] == command) for command in missing.values()}
    parts = [f"{', '.join(names)} (`{command}` makes {'them' if len(names) > 1 else 'it'})" for command, names in commands.items()]
    return (f"Not there yet: {'; '.join(parts)}.\n" if parts else "") + f"{folder}/index.html"
