"""A folder of pictures in GenEval's layout, as its authors' drawing script leaves it."""

import json
from pathlib import Path

from PIL import Image


def write_folder(folder: Path, pictures: list[Image.Image], metadata: list[dict]) -> None:
    """Pictures and the metadata of each; pictures of one prompt lie together."""
    prompts = [json.dumps(row) for row in metadata]
    for number, prompt in enumerate(dict.fromkeys(prompts)):
        samples = folder / f"{number:05d}/samples"
        samples.mkdir(parents=True)
        (samples.parent / "metadata.jsonl").write_text(prompt + "\n", encoding="utf-8")
        drawn = [picture for picture, own in zip(pictures, prompts) if own == prompt]
        for i, picture in enumerate(drawn):
            picture.save(samples / f"{i:05d}.png")
