"""Prompt benchmarks whose judge is a model that answers questions: GenEval 2, T2I-CompBench and DPG-Bench. Their prompts are read, their
pictures drawn into their own layouts, their scores taken.

ask(pixels (b, 3, h, w) in [0, 1], b questions, b lists of surface forms) -> (b,): the probability that the answer to each question is one
of its forms, in [0, 1]. A tokenizer may give two forms one first token: its probability counts once."""

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from icthp import files, images
from icthp.evaluation.statistics import bootstrap_ci
from icthp.tables import declared, read_csv, read_json, read_jsonl, read_lines

# ---- prompts ----------------------------------------------------------------------------------------------------


def read_geneval2(file) -> list[dict]:
    """geneval2_data.jsonl of GenEval 2 (arXiv 2512.16853; facebookresearch/GenEval2, CC BY-NC 4.0), 800 lines with prompt, atom_count,
    vqa_list, [question, answer] each, and skills, one a question. ValueError names a malformed line."""
    types = {"prompt": str, "atom_count": int, "vqa_list": list, "skills": list}
    rows = read_jsonl(file)
    for line, row in rows:
        is_whole = all(isinstance(row.get(name), kind) and row[name] for name, kind in types.items())
        if not is_whole or len(row["skills"]) != len(row["vqa_list"]) or not all(map(_is_pair_of_texts, row["vqa_list"])):
            raise ValueError(f"{file}, line {line} is none of GenEval 2's: prompt, a text, atom_count, a number, vqa_list, pairs of a "
                             "question and an answer, and skills, one a pair")  # fmt: skip
    if not rows or len({row["prompt"] for _, row in rows}) < len(rows):
        raise ValueError(f"{file} is empty or has a prompt twice; GenEval 2 names a picture by its prompt")
    return [row for _, row in rows]


def _is_pair_of_texts(value) -> bool:
    return isinstance(value, list) and len(value) == 2 and all(isinstance(part, str) for part in value)


CATEGORIES = ("color", "shape", "texture", "spatial", "non_spatial", "complex")


def read_compbench(folder) -> dict[str, list[str]]:
    """{category: prompts} of T2I-CompBench (arXiv 2307.06350; Karine-Huang/T2I-CompBench, MIT), examples/dataset/{category}_val.txt there:
    300 lines each, of which what follows a tab is no prompt, as in its authors' drawing script."""
    paths = {category: Path(folder) / f"{category}_val.txt" for category in CATEGORIES}
    if missing := [path.name for path in paths.values() if not path.exists()]:
        raise FileNotFoundError(f"{folder} lacks {', '.join(missing)}: they are in examples/dataset of T2I-CompBench's repository")
    return {category: [line.partition("\t")[0].strip() for line in read_lines(path)] for category, path in paths.items()}


def read_dpg(file) -> pd.DataFrame:
    """dpg_bench.csv of DPG-Bench (arXiv 2403.05135; TencentQQGYLab/ELLA, Apache-2.0), a row a question: item_id, text, proposition_id,
    parents (ids of the questions of the item without which this one is void), category ("entity - whole"), question. ValueError names a
    row with a parent that its item does not have."""
    texts = ["item_id", "text", "dependency", "tuple", "question_natural_language"]
    table = declared(file, read_csv(file), texts, ["proposition_id"])
    table = table.assign(parents=[_parents(file, i, text) for i, text in enumerate(table.dependency)],
                         category=table.tuple.str.partition("(")[0].str.strip(" -"), question=table.question_natural_language)  # fmt: skip
    known = set(zip(table.item_id, table.proposition_id))
    for i, (item, parents) in enumerate(zip(table.item_id, table.parents)):
        if unknown := [parent for parent in parents if (item, parent) not in known]:
            raise ValueError(f"{file}: row {i} depends on question {unknown[0]} of {item}, which has none of that number")
        if Path(item).name != item:
            raise ValueError(f"{file}: row {i} has the item_id {item!r}, which is no name of a file")
    return table[["item_id", "text", "proposition_id", "parents", "category", "question"]].astype({"proposition_id": int})


def _parents(file, i: int, text: str) -> tuple[int, ...]:
    """The numbers in a text such as "1, 2"; 0 is none."""
    try:
        return tuple(int(part) for part in text.split(",") if int(part))
    except ValueError as error:
        raise ValueError(f"{file}: column `dependency`, row {i} is {text[:60]!r}, which is no list of numbers") from error


# ---- pictures ---------------------------------------------------------------------------------------------------


class Sample(NamedTuple):
    """A picture that a benchmark wants; ids of its noises, of which four make a grid."""

    file: Path
    prompt: str
    ids: range


def draw_geneval2(folder, rows: list[dict], draw: Callable[..., Tensor], batch: int = 16) -> Path:
    """A picture a prompt as {number}.png, and images.json, {prompt: path}, which GenEval 2's script reads -> its path. See `draw_missing`
    for draw."""
    folder = Path(folder).resolve()
    samples = [Sample(folder / f"{i:05d}.png", row["prompt"], range(i, i + 1)) for i, row in enumerate(rows)]
    draw_missing(samples, draw, batch)
    return files.save_json(folder / "images.json", {sample.prompt: str(sample.file) for sample in samples})


def draw_compbench(folder, prompts: list[str], draw: Callable[..., Tensor], count: int = 10, batch: int = 16) -> Path:
    """`count` pictures a prompt of one category as samples/{prompt}_{number:06d}.png, numbers going on from prompt to prompt -> samples.
    Its scripts name an answer by its picture's place among all files: draw each category into a folder of its own."""
    folder = Path(folder) / "samples"
    if bad := [prompt for prompt in prompts if set(prompt) & set("/\0_") or len(prompt.encode()) > 240]:
        raise ValueError(f"{bad[0][:80]!r} cannot be in a file's name as T2I-CompBench wants it: it is too long, or has / or _ in it")
    numbers = ((prompt, i * count + k) for i, prompt in enumerate(prompts) for k in range(count))
    draw_missing([Sample(folder / f"{prompt}_{n:06d}.png", prompt, range(n, n + 1)) for prompt, n in numbers], draw, batch)
    return folder


def draw_dpg(folder, table: pd.DataFrame, draw: Callable[..., Tensor], batch: int = 16) -> Path:
    """{item_id}.png a prompt of `read_dpg`, four pictures in a grid of 2 x 2 -> the folder. Its script takes all files there for grids."""
    items = table.drop_duplicates("item_id")
    places = [Path(folder) / f"{item}.png" for item in items.item_id]
    draw_missing([Sample(place, text, range(4 * i, 4 * i + 4)) for i, (place, text) in enumerate(zip(places, items.text))], draw, batch)
    return Path(folder)


def draw_missing(samples: list[Sample], draw: Callable[..., Tensor], batch: int = 16) -> None:
    """Draw those whose files are not there, some `batch` pictures at a time, each written whole or not at all: a killed run goes on.
    draw(prompts, ids=numbers of noises) -> pixels (n, 3, h, w) in [0, 1], such as partial(tuning.generate, pipe, steps=50)."""
    missing = [sample for sample in samples if not sample.file.exists()]
    step = max(1, batch // max((len(sample.ids) for sample in missing), default=1))
    for start in range(0, len(missing), step):
        part = missing[start : start + step]
        pixels = draw([sample.prompt for sample in part for _ in sample.ids], ids=[i for sample in part for i in sample.ids])
        for sample, own in zip(part, pixels.split([len(sample.ids) for sample in part])):
            _write(sample.file, own)


def _write(file: Path, pixels: Tensor) -> None:
    """One picture, or four row by row, as a PNG."""
    grid = torch.cat([torch.cat([*row], 2) for row in pixels.split(2)], 1)
    contents = images.encode(grid[None])[0]["bytes"]
    files.atomic(file, lambda partial: partial.write_bytes(contents))


# ---- questions --------------------------------------------------------------------------------------------------

NUMBERS = ("zero", "one", "two", "three", "four", "five", "six", "seven", "eight", "nine", "ten")


def surface_forms(answer: str) -> list[str]:
    """How a model may write an answer of a word, as GenEval 2 has them: small, with a capital, a number as its word and its digits, each
    also after a space."""
    word = answer.strip().lower()
    digits = dict(zip(NUMBERS, map(str, range(len(NUMBERS)))))
    same = [word, digits[word]] if word in digits else [NUMBERS[int(word)], word] if word in digits.values() else [word]
    forms = dict.fromkeys(form for text in same for form in (text, text.capitalize()))
    return [*forms, *(f" {form}" for form in forms)]


def _asked(ask: Callable, pixels: Tensor, questions: list[str], answers: list[str]) -> np.ndarray:
    """(q,) probabilities of the answers to questions on one picture (3, h, w)."""
    with torch.no_grad():
        found = ask(pixels.expand(len(questions), *pixels.shape), questions, [surface_forms(answer) for answer in answers])
    found = np.asarray(torch.as_tensor(found).double().cpu())
    if found.shape != (len(questions),) or not ((found >= 0) & (found <= 1 + 1e-4)).all():
        raise ValueError(f"ask gave {found} for {len(questions)} questions: it should be a probability each, in [0, 1]")
    return found.clip(0, 1)


def _score(measure: str, part: str, values, groups) -> dict:
    """A row of a table of scores, in per cent; without an interval for a single prompt."""
    values = 100 * np.asarray(values, dtype=float)
    if len({*groups}) < 2:
        ci = {"mean": values.mean(), "low": np.nan, "high": np.nan, "n": len(values), "groups": 1}
    else:
        ci = bootstrap_ci(values, groups, bounds=(0, 100))
    return {"measure": measure, "part": part} | ci


# ---- scores -----------------------------------------------------------------------------------------------------


def soft_tifa(rows: list[dict], pictures: dict, ask: Callable) -> pd.DataFrame:
    """GenEval 2's Soft-TIFA: the probability of the right answer to each question on each picture, {prompt: path} -> prompt, atom_count,
    skill, question, probability, a row a question."""
    parts = []
    for row in rows:
        if row["prompt"] not in pictures:
            raise ValueError(f"there is no picture of the prompt {row['prompt']!r}")
        questions, answers = map(list, zip(*row["vqa_list"]))
        found = _asked(ask, images.to_pixels(pictures[row["prompt"]]), [f"{q} Answer in one word." for q in questions], answers)
        parts.append(pd.DataFrame({"prompt": row["prompt"], "atom_count": row["atom_count"], "skill": row["skills"], "question": questions,
                                   "probability": found}))  # fmt: skip
    return pd.concat(parts, ignore_index=True)


def soft_tifa_scores(answers: pd.DataFrame) -> pd.DataFrame:
    """Of `soft_tifa`: measure, part, mean in per cent with an interval over prompts. `am` and `gm`, of part "all", are means over prompts
    of the arithmetic and the geometric mean of a prompt's questions; as its authors have them, `am` is also that of all questions of each
    skill, and `gm` that of the prompts of each atom_count."""
    questions = answers.groupby("prompt", sort=False)
    means = pd.DataFrame({"am": questions.probability.mean(), "gm": questions.probability.agg(_geometric_mean),
                          "atoms": questions.atom_count.first()})  # fmt: skip
    rows = [_score(measure, "all", means[measure], means.index) for measure in ("am", "gm")]
    rows += [_score("am", skill, part.probability, part.prompt) for skill, part in answers.groupby("skill")]
    rows += [_score("gm", f"{atoms} atoms", part.gm, part.index) for atoms, part in means.groupby("atoms")]
    return pd.DataFrame(rows)


def _geometric_mean(values: pd.Series) -> float:
    with np.errstate(divide="ignore"):
        return float(np.exp(np.log(values.to_numpy(float)).mean()))


def dpg_answers(table: pd.DataFrame, folder, ask: Callable, count: int = 4) -> pd.DataFrame:
    """Each question of `read_dpg` on each of `count` (4 or 1) pictures in {item_id}.png -> the table a row a question and picture, with
    sample, its number, and correct: is yes more probable than not? (The published model is mPLUG-large, whose text is compared to yes.)"""
    parts = []
    for item, rows in table.groupby("item_id", sort=False):
        grid = images.to_pixels(Path(folder) / f"{item}.png")
        quarters = [half for band in grid.chunk(2, 1) for half in band.chunk(2, 2)] if count == 4 else [grid]
        for k, pixels in enumerate(quarters):
            found = _asked(ask, pixels, [*rows.question], ["yes"] * len(rows))
            parts.append(rows.assign(sample=k, correct=found > 0.5))
    return pd.concat(parts, ignore_index=True)


def dpg_scores(answers: pd.DataFrame) -> pd.DataFrame:
    """Of `dpg_answers`, in columns as of `soft_tifa_scores`: a question counts if it and all those that it depends on are correct. `dpg` is
    the mean over the questions of a picture, the pictures of a prompt, and the prompts; of a category ("entity") and a narrower one
    ("entity - whole") it is the mean over questions. The published script skips the first row of the file, so that its prompt fails unseen
    (ELLA issue 61), and takes categories before the dependencies and from the last of four pictures; none of that is so here."""
    pictures = [part.assign(valid=_without_void(part)) for _, part in answers.groupby(["item_id", "sample"], sort=False)]
    answers = pd.concat(pictures, ignore_index=True)
    prompts = answers.groupby("item_id", sort=False).valid.mean()
    rows = [_score("dpg", "all", prompts, prompts.index)]
    for names in (answers.category.str.partition(" - ")[0], answers.category):
        rows += [_score("dpg", name, part.valid, part.item_id) for name, part in answers.groupby(names)]
    return pd.DataFrame(rows).drop_duplicates(["measure", "part"], ignore_index=True)


def _without_void(part: pd.DataFrame) -> list[float]:
    """1 for each question on one picture that is correct as all those above it are, else 0."""
    valid = dict(zip(part.proposition_id, part.correct))
    parents = dict(zip(part.proposition_id, part.parents))
    while void := [q for q, true in valid.items() if true and not all(valid[parent] for parent in parents[q])]:
        valid |= dict.fromkeys(void, False)
    return [float(valid[q]) for q in part.proposition_id]


def compbench_score(file, prompts: int, count: int = 10) -> dict:
    """The mean of T2I-CompBench's vqa_result.json of one category, [{"question_id": int, "answer": "0.7110"}], with an interval over its
    prompts, of `count` pictures each. ValueError unless each picture has one answer."""
    table = pd.DataFrame(read_json(file), columns=["question_id", "answer"], dtype=object)
    table = declared(file, table, numbers=["question_id", "answer"]).sort_values("question_id", kind="stable")
    if table.question_id.tolist() != list(range(prompts * count)):
        raise ValueError(f"{file} has {len(table)} answers, not one for each of the pictures 0 to {prompts * count - 1}")
    return bootstrap_ci(table.answer, table.question_id // count)
