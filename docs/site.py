"""`make site`: the README, the executed notebooks and the figures as a folder of HTML that any web server can show."""

import re
import shutil
import sys
from pathlib import Path

from nbconvert import HTMLExporter
from nbconvert.filters import markdown2html

PAGE = """<!DOCTYPE html>
<html lang="en"><head><meta charset="utf-8"><meta name="viewport" content="width=device-width"><title>{title}</title>
<style>
body {{ font: 16px/1.5 sans-serif; max-width: 62em; margin: 2em auto; padding: 0 1em; color: #222 }}
img {{ max-width: 100% }} .anchor-link {{ display: none }} pre {{ background: #f5f5f5; padding: .8em; overflow-x: auto }} code {{ background: #f5f5f5 }}
table {{ border-collapse: collapse; font-size: 14px; display: block; overflow-x: auto }} td, th {{ border-bottom: 1px solid #ddd; padding: .3em .6em; text-align: left }}
</style></head><body>{body}</body></html>
"""  # noqa: E501


def notebooks(runs: Path, out: Path) -> list[str]:
    """Each executed notebook of runs/notebooks as a page of its own; their names."""
    exporter = HTMLExporter(embed_images=True)
    names = []
    for file in sorted(runs.glob("notebooks/*.ipynb")):
        html, _ = exporter.from_filename(str(file))
        (out / f"{file.stem}.html").write_text(html, encoding="utf-8")
        names.append(file.stem)
    return names


def index(readme: str, names: list[str], figures: list[str]) -> str:
    """The README with links to the pages instead of the notebooks, then the executed notebooks, then the figures."""
    first = {name.partition("-")[0]: name for name in reversed(names)}

    def page(match: re.Match) -> str:
        return f"({first[match[1]]}.html)" if match[1] in first else "(#Executed)"

    text = re.sub(r"\(notebooks/(\w+)\.ipynb\)", page, readme)
    text += "\n\n## Executed\n\n" + "".join(f"- [{name}]({name}.html)\n" for name in names)
    text += "\n## Figures\n\n" + "".join(f"![{name}](figures/{name})\n\n" for name in figures)
    return PAGE.format(title="icthp", body=markdown2html(text))


def main(runs="runs", figures="figures", out="site") -> None:
    runs, figures, out = Path(runs), Path(figures), Path(out)
    if not list(runs.glob("notebooks/*.ipynb")):
        raise SystemExit(f"{runs}/notebooks holds no executed notebook: `make repro` makes them")
    shutil.rmtree(out, ignore_errors=True)
    for folder, source in (("docs", Path("docs")), ("figures", figures)):
        (out / folder).mkdir(parents=True)
        for picture in source.glob("*.png"):
            shutil.copy(picture, out / folder)
    names = notebooks(runs, out)
    readme = Path("README.md").read_text(encoding="utf-8")
    pictures = sorted(path.name for path in (out / "figures").iterdir())
    (out / "index.html").write_text(index(readme, names, pictures), encoding="utf-8")
    print(f"{out}/index.html and {len(names)} notebooks: python -m http.server --directory {out}")


if __name__ == "__main__":
    main(*sys.argv[1:])
