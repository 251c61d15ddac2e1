"""The audit of triplets: I3's file format tells it apart until it is matched, and a perturbed cue until it is."""

import datasets
import numpy as np
import pytest

from icthp import images
from icthp.data import audit, shortcuts
from icthp.microworld import grammar, renderer

SIDE = 64


@pytest.fixture(scope="module")
def rows(scenes):
    """Triplets that differ in nothing but the file of I3: three pictures of one richness, the last one a PNG."""
    pictures = [renderer.render(scenes[:24].at(0.5)) for _ in range(3)]
    columns = {f"image_{i}": images.encode(pixels, "JPEG", quality=75) for i, pixels in enumerate(pictures[:2], 1)}
    columns |= {"image_3": images.encode(pictures[2], "PNG"), "easy_prompt": grammar.captions(scenes[:24])}
    features = {name: datasets.Image() for name in ("image_1", "image_2", "image_3")} | {"easy_prompt": datasets.Value("string")}
    return datasets.Dataset.from_dict(columns, features=datasets.Features(features))


def test_the_files_are_those_that_are_stored(rows):
    first_bytes = [{content[:3] for content in shortcuts.file_contents(rows, i)} for i in (1, 2, 3)]
    assert first_bytes == [{b"\xff\xd8\xff"}, {b"\xff\xd8\xff"}, {b"\x89PN"}]


@pytest.mark.slow
def test_format_tells_i3_apart_until_it_is_matched(rows):
    audited = shortcuts.audit_triplets(rows, SIDE)
    assert list(audited) == ["i2_i1", "i3_i2", "i3_i2_encoded", "i3_i2_coloured", "i3_i2_matched"]
    assert all(set(correct) == {*audit.CUES, "all"} and len(correct["all"]) == len(rows) for correct in audited.values())
    assert audited["i3_i2"]["format"].mean() == 1 and audited["i2_i1"]["format"].mean() == 0.5
    assert all(audited[f"i3_i2_{name}"]["format"].mean() == 0.5 for name in shortcuts.MATCHES)


def test_a_match_in_format_makes_equal_pictures_equal_files(rows):
    i2, i3 = shortcuts.match_i3(rows.select(range(4)), SIDE)
    assert [len(content) for content in i2] == [len(content) for content in i3]
    assert i2[0] == shortcuts.file_contents(rows, 2)[0]  # JPEG 75 stays as it is


@pytest.mark.slow
def test_each_perturbation_is_found_before_its_control(rows):
    perturbed = shortcuts.audit_perturbed(rows.select(range(23)), SIDE)
    assert list(perturbed) == list(audit.PERTURBATIONS)
    assert {len(values) for found in perturbed.values() for values in found.values()} == {22}  # an even number
    assert perturbed["format"]["before"].mean() == 1 and perturbed["size"]["before"].mean() == 1
    assert np.mean(perturbed["size"]["after"]) < 1
