"""Prompts, photographs, pairs, votes and published sets for a rehearsal of the lab scale, all made here. In each, brighter is better, so
that a scorer of brightness is a perfect one."""

import io
import json
from pathlib import Path

import datasets
import numpy as np
import pandas as pd
from PIL import Image, ImageDraw

from icthp.data import PAIRS
from lab.models import NAMES

PROMPTS = [f"a photo of {count} {colour} {name}{'s' if count != 'one' else ''}" for name in NAMES[:12]
           for count, colour in (("one", "red"), ("two", "green"), ("three", "blue"))]  # fmt: skip
TASKS = ("single_object", "two_object", "counting", "colors", "position", "color_attr")


def photograph(seed: int, brightness: float, size=(96, 64), detail: int = 6) -> Image.Image:
    """A sky and some ellipses; the mean grey rises with `brightness` in [0, 1]."""
    draw = np.random.default_rng(seed)
    image = Image.new("RGB", size, tuple(int(v) for v in 40 + 150 * brightness + draw.uniform(-8, 8, 3)))
    brush = ImageDraw.Draw(image)
    for _ in range(detail):
        x, y, r = draw.uniform(0, size[0]), draw.uniform(0, size[1]), draw.uniform(3, 12)
        brush.ellipse((x - r, y - r, x + r, y + r), fill=tuple(int(v) for v in 40 + 150 * brightness + draw.uniform(-30, 30, 3)))
    return image


def contents(image: Image.Image, format: str = "JPEG", **options) -> bytes:
    image.save(out := io.BytesIO(), format, **options)
    return out.getvalue()


def prompt_files(folder: Path) -> None:
    """train.txt, test.txt and GenEval's own lines, two a task."""
    folder.mkdir(parents=True)
    (folder / "train.txt").write_text("\n".join(PROMPTS[:24]) + "\n", encoding="utf-8")
    (folder / "test.txt").write_text("\n".join(PROMPTS[24:36]) + "\n", encoding="utf-8")
    rows = []
    for i, task in enumerate(TASKS):
        for a, b in ((NAMES[i], NAMES[i + 1]), (NAMES[i + 2], NAMES[i + 3])):
            include = {
                "single_object": [{"class": a, "count": 1}], "counting": [{"class": a, "count": 3}],
                "colors": [{"class": a, "count": 1, "color": "red"}],
                "two_object": [{"class": a, "count": 1}, {"class": b, "count": 1}],
                "position": [{"class": a, "count": 1}, {"class": b, "count": 1, "position": ["left of", 0]}],
                "color_attr": [{"class": a, "count": 1, "color": "red"}, {"class": b, "count": 1, "color": "blue"}],
            }[task]  # fmt: skip
            rows.append({"tag": task, "include": include, "prompt": f"a photo of {task.replace('_', ' ')}: {a} {b}"})
    (folder / "geneval.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")


def pairs(folder: Path, train: int = 20, test: int = 10) -> None:
    """I1 < I2 of photographs of several shapes, as JPEG files of other sizes than I3."""
    folder.mkdir(parents=True)
    for split, texts in (("train", PROMPTS[:train]), ("test", PROMPTS[24 : 24 + test])):
        columns = {"prompt_id": [7 * i + 3 for i in range(len(texts))], "easy_prompt": texts,
                   "agreed": [None if i % 4 == 0 else i % 4 < 3 for i in range(len(texts))]}  # fmt: skip
        for k, brightness in ((1, 0.3), (2, 0.7)):
            images = [photograph(10 * i + k, brightness, ((96, 64), (64, 96), (80, 80))[i % 3]) for i in range(len(texts))]
            columns |= {f"image_{k}": [{"bytes": contents(image, quality=80), "path": None} for image in images]}
            columns |= {f"source_{k}": [f"generator {k}"] * len(texts)}
        datasets.Dataset.from_dict(columns, features=PAIRS).to_parquet(folder / f"{split}.parquet")


def levels(folder: Path, count: int = 6) -> Path:
    """A table of three pictures a prompt, plain and dark to rich and bright, of other sizes and formats."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        row = {"prompt": PROMPTS[i]}
        for k, (size, suffix) in enumerate((((96, 64), "jpg"), ((96, 64), "jpg"), ((128, 128), "png")), 1):
            row[f"I{k}"] = f"{i}_{k}.{suffix}"
            photograph(100 + 10 * i + k, 0.25 * k, size, detail=2 + 8 * k).save(folder / row[f"I{k}"])
        rows.append(row)
    pd.DataFrame(rows).to_parquet(folder / "pictures.parquet")
    return folder / "pictures.parquet"


def photographs(folder: Path) -> None:
    """A folder as people have them: grey, with an alpha channel, turned by its EXIF, and one that is cut."""
    folder.mkdir(parents=True)
    photograph(1, 0.5).save(folder / "landscape.jpg")
    photograph(2, 0.5, (40, 90)).convert("L").save(folder / "portrait.png")
    exif = Image.Exif()
    exif[274] = 6
    photograph(3, 0.5).save(folder / "turned.jpg", exif=exif)
    photograph(4, 0.5).convert("RGBA").save(folder / "alpha.webp")
    (folder / "cut.jpg").write_bytes(contents(photograph(5, 0.5))[:300])


def agiqa3k(folder: Path, count: int = 6) -> None:
    """Mean opinions of AGIQA-3K's layout: quality rises with the brightness."""
    folder.mkdir(parents=True)
    rows = []
    for i in range(count):
        for k in range(3):
            name = f"sd{k}_{i:03d}.jpg"
            photograph(300 + 10 * i + k, 0.2 + 0.3 * k).save(folder / name)
            rows.append({"name": name, "prompt": PROMPTS[i], "mos_quality": 1.0 + k, "mos_align": 3.0 - k})
    pd.DataFrame(rows).to_csv(folder / "data.csv", index=False)


def official(folder: Path) -> None:
    """The Pick-High release: frames pickled by pandas, beside two folders of pictures; one row breaks an invariant."""
    draw = np.random.default_rng(1)
    for split, first, count in (("train", 0, 14), ("val", 14, 4), ("test", 24, 8)):
        easy, refined, rows = folder / "pick_easy_img" / split, folder / "pick_refine_img" / split, []
        easy.mkdir(parents=True), refined.mkdir(parents=True)
        for i in range(count):
            photograph(500 + 10 * i, 0.3).save(easy / f"{i}_0.jpg")
            photograph(501 + 10 * i, 0.6).save(easy / f"{i}_1.jpg")
            photograph(502 + 10 * i, 0.9, (96, 96)).save(refined / f"{i}.png")
            e1, e2 = sorted(draw.uniform(0.3, 0.9, 2))
            s = draw.uniform(0.5, 0.9)
            prompt = PROMPTS[first + i]
            rows.append({
                "easy_prompt": prompt, "refine_prompt": f"{prompt}, in soft morning light", "easy_image_0": f"{i}_0.jpg",
                "easy_image_1": f"{i}_1.jpg", "refine_image": f"{i}.png", "E1": e1, "E2": e2, "R1": e1 * s, "R2": e2 * s})  # fmt: skip
        if split == "train":
            rows[3]["E1"] = 0.99
        pd.DataFrame(rows).to_pickle(folder / f"{split}.pkl")
