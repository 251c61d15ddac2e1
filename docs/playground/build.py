"""`python docs/playground/build.py`: the playground as one page that needs neither server nor network, site/playground.html, from the
sources and the recorded data beside this file. `... record [scenes clip pickscore ...]` first records what is missing, with the models."""

import json
import sys
from pathlib import Path

HERE = Path(__file__).parent
SCRIPTS = ("picture.js", "scores.js", "chart.js", "scene.js", "tuning.js", "start.js")  # one module, in this order
REWARDS = ("clip", "pickscore", "ict", "hp", "icthp", "edges")  # in the order of the menu


def read(name: str) -> str:
    return (HERE / name).read_text(encoding="utf-8")


def recorded() -> dict:
    """All that the page knows. FileNotFoundError names a file that was never recorded."""
    return {"scenes": json.loads(read("scenes.json")), "tunings": [json.loads(read(f"tuning_{name}.json")) for name in REWARDS]}


def page(data: dict) -> str:
    """The page's HTML: template, style and scripts with the data inside."""
    script = "\n".join(read(name) for name in SCRIPTS)
    text = json.dumps(data, ensure_ascii=False, separators=(",", ":")).replace("</", "<\\/")
    html = read("page.html")
    for name, value in {"style": "\n" + read("style.css"), "script": script, "data": text}.items():
        html = html.replace("{{" + name + "}}", value)
    return html


def main(out="site/playground.html") -> Path:
    out = Path(out)
    out.parent.mkdir(parents=True, exist_ok=True)
    out.write_text(page(recorded()), encoding="utf-8")
    print(f"{out}: {out.stat().st_size / 1e6:.2f} MB")
    return out


if __name__ == "__main__":
    if sys.argv[1:2] == ["record"]:
        import record

        for wanted in sys.argv[2:] or ["scenes", *REWARDS]:
            record.record(wanted)
        main()
    else:
        main(*sys.argv[1:])
