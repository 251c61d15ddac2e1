"""Ask somebody who knows nothing: `python study/readers.py COMPARISON FOLDER` writes sheets of numbered rows, two pictures A and B of one
prompt each, in random order and place, and `key.json`, the letter of the picture that the comparison is about. study/readers.csv holds
what was answered.

i3      I3 or I2, of rows of the test triplets
tuned   by the generator tuned on ICT-HP, or by the untuned one
rich    by the generator of I3, from the longest prompt or from the short one
"""

import json
import sys
from pathlib import Path

import numpy as np
import torch
from PIL import Image, ImageDraw
from torch import Tensor

from icthp import data, microworld, pipelines, run, tables, tuning

ROWS = 24
ON_A_SHEET = 6
SIDE = 256  # of a picture as shown
MARGIN = 40


def pictures(comparison: str, params: dict, seed: int) -> tuple[list[str], Tensor, Tensor]:
    """(prompts, pictures that the comparison is about, the others), (ROWS, 3, h, w)."""
    shared, own = params["shared"], params["evaluate"]
    rng = np.random.default_rng(seed)
    if comparison == "i3":
        test = data.Triplets(shared["triplets"], "test", shared["size"])
        first_rows = list({test.texts["easy"][i]: int(i) for i in rng.permutation(len(test))}.values())[:ROWS]  # a row a prompt
        _, i2, i3 = test.pixels(first_rows)
        return [test.texts["easy"][i] for i in first_rows], i3, i2
    prompts = tables.read_lines(Path(shared["prompts"]) / "test.txt")
    prompts = [prompts[i] for i in rng.choice(len(prompts), ROWS, replace=False)]
    sample_kwargs = {"steps": shared["sampler_steps"], "size": shared["size"], "guidance": own["guidance"], "seed": seed}
    transformer = own["transformer"] if comparison == "tuned" else ""
    pipe = pipelines.load_pipeline(own["generator"], transformer=transformer)
    others = tuning.generate(pipe, prompts, **sample_kwargs)
    if comparison == "tuned":
        tuning.load_lora(pipe, f"{shared['models']}/draft/icthp")
        return prompts, tuning.generate(pipe, prompts, **sample_kwargs), others
    return prompts, tuning.generate(pipe, list(microworld.microworld_grammar(prompts)), **sample_kwargs), others


def sheets(prompts: list[str], chosen: Tensor, others: Tensor, folder: Path, seed: int) -> None:
    """`folder`/1.png and so on, and key.json: {row: "A" or "B"}."""
    rng = np.random.default_rng(seed)
    order, is_a = rng.permutation(len(prompts)), rng.random(len(prompts)) < 0.5
    folder.mkdir(parents=True, exist_ok=True)
    for start in range(0, len(order), ON_A_SHEET):
        rows = range(start, min(start + ON_A_SHEET, len(order)))
        sheet = Image.new("RGB", (2 * (SIDE + MARGIN) + MARGIN, len(rows) * (SIDE + MARGIN)), "white")
        for line, row in enumerate(rows):
            i = order[row]
            pair = (chosen[i], others[i]) if is_a[row] else (others[i], chosen[i])
            draw_row(sheet, line * (SIDE + MARGIN), f"{row + 1}.  {prompts[i]}", pair)
        sheet.save(folder / f"{start // ON_A_SHEET + 1}.png")
    key = {str(row + 1): "A" if first else "B" for row, first in enumerate(is_a)}
    (folder / "key.json").write_text(json.dumps(key), encoding="utf-8")


def draw_row(sheet: Image.Image, top: int, title: str, pair: tuple[Tensor, Tensor]) -> None:
    draw = ImageDraw.Draw(sheet)
    draw.text((10, top + 10), title, fill="black")
    for place, (letter, pixels) in enumerate(zip("AB", pair)):
        left = MARGIN + place * (SIDE + MARGIN)
        draw.text((left - 14, top + MARGIN // 2 + SIDE // 2), letter, fill="black")
        picture = Image.fromarray(pixels.clamp(0, 1).mul(255).round().byte().permute(1, 2, 0).numpy())
        sheet.paste(picture.resize((SIDE, SIDE), Image.Resampling.LANCZOS), (left, top + 30))


def main(argv: list[str]) -> None:
    run.enter_project()
    comparison, folder = argv
    if comparison not in ("i3", "tuned", "rich"):
        raise ValueError(f"there is no comparison {comparison}: i3, tuned or rich")
    params = run.read_params()
    seed = params["shared"]["seed"]
    with torch.no_grad():
        sheets(*pictures(comparison, params, seed), Path(folder), seed)


if __name__ == "__main__":
    run.own_code()
    main(sys.argv[1:])
