"""Reading images: what is read, what is refused by name, what it starts, and how much memory it takes."""

import base64
import io
import os
import subprocess
import sys

import datasets
import numpy as np
import pandas as pd
import pytest
import torch
from PIL import Image

from conftest import ROOT
from icthp import images
from icthp.data import audit
from icthp.evaluation import gallery, gallery_page
from icthp.scorers import loading

RAMP = np.linspace(0, 1, 64 * 64).reshape(64, 64)
DEEP = {  # name: (numbers, file ending)
    "16 bits": ((RAMP * 65535).astype(np.uint16), "png"),
    "16 bits in a TIFF": ((RAMP * 65535).astype(np.uint16), "tif"),
    "32-bit whole numbers": ((RAMP * 65535).astype(np.int32), "tif"),
    "floats": (RAMP.astype(np.float32), "tif"),
}


def saved(array, file, **options):
    Image.fromarray(array).save(file, **options)
    return file


# ---- modes ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", DEEP)
def test_deep_greys_keep_their_range_in_every_reader(tmp_path, name):
    """The scorer's pixels, the gallery's thumbnail, the audit's cues, a PIL image: a ramp from black to white everywhere."""
    array, ending = DEEP[name]
    file = saved(array, tmp_path / f"ramp.{ending}")
    expected = torch.from_numpy(RAMP * 255).round().byte()
    assert (images.read(file).int() - expected.int()).abs().max() <= 1
    assert images.to_image(file).mode == "RGB" and abs(np.asarray(images.to_image(file)).mean() - 127.5) < 1
    jpeg = {"jpeg": loading.load("jpeg")}
    table = gallery.score(jpeg, gallery.read(str(tmp_path), tmp_path), tmp_path / "store")
    page = gallery_page.write_html(tmp_path / "page.html", jpeg, table, "t").read_text(encoding="utf-8")
    thumbnail = base64.b64decode(page.split("data:image/jpeg;base64,")[1].split('"')[0])
    assert abs(np.asarray(Image.open(io.BytesIO(thumbnail))).mean() - 127.5) < 3
    assert audit.cues(file.read_bytes())["colour"][:3] == pytest.approx([0.5] * 3, abs=0.01)


@pytest.mark.parametrize("array, why", [
    (np.full((4, 4), 70000, np.int32), "whole numbers go from 70000 to 70000"), (np.full((4, 4), -1, np.int32), "go from -1"),
    (np.full((4, 4), 200, np.int32), "white may be 255, 4095 or 65535"), (np.full((4, 4), 1.5, np.float32), "floats go from 1.5"),
    (np.full((4, 4), -0.5, np.float32), "floats go from -0.5"),
    (np.array([[0.5, np.nan], [0, 1]], np.float32), "not a number")])  # fmt: skip
def test_numbers_without_a_meaning_are_refused_by_name(tmp_path, array, why):
    with pytest.raises(ValueError, match=rf"deep.tif cannot be read: .*{why}"):
        images.read(saved(array, tmp_path / "deep.tif"))


def test_a_16_bit_pgm_is_scaled(tmp_path):
    values = (RAMP * 65535).astype(">u2")
    (tmp_path / "x.pgm").write_bytes(b"P5 64 64 65535\n" + values.tobytes())
    assert abs(images.read(tmp_path / "x.pgm").float().mean() - 127.5) < 1
    (tmp_path / "dark.pgm").write_bytes(b"P5 64 64 65535\n" + np.full((64, 64), 200, ">u2").tobytes())
    assert (images.read(tmp_path / "dark.pgm") == 1).all()


def test_a_deep_tiff_whose_white_is_zero_is_refused(tmp_path):
    """Pillow turns such a picture round at 8 bits only; at 16 it came out as its negative."""
    deep = Image.fromarray(np.full((4, 4), 60000, np.uint16))
    deep.save(tmp_path / "x.tif", tiffinfo={262: 0})
    with Image.open(tmp_path / "x.tif") as image:
        assert image.mode == "I;16" and image.tag_v2[262] == 0
    with pytest.raises(ValueError, match="white is 0"):
        images.read(tmp_path / "x.tif")


def test_strips_are_joined_without_a_seam(tmp_path, monkeypatch):
    draw = np.random.default_rng(0).integers(0, 256, (37, 23, 4), dtype=np.uint8)
    deep = Image.fromarray((RAMP * 65535).astype(np.uint16))
    expected_deep = images.read(deep)
    for mode in ("RGB", "RGBA", "L", "P", "CMYK", "1", "YCbCr", "LA"):
        image = Image.fromarray(draw, "RGBA").convert("RGB").convert(mode)
        expected = np.asarray(image.convert("RGB"))
        monkeypatch.setattr(images, "STRIP", 23 * 5)
        assert np.array_equal(images.read(image).permute(1, 2, 0).numpy(), expected), mode
    assert torch.equal(images.read(deep), expected_deep)


def test_the_camera_and_the_first_frame(tmp_path):
    """Turned as EXIF says, in the scorer, in GenEval and in the audit; of an animation the first frame."""
    array = np.zeros((8, 16, 3), np.uint8)
    array[:, :4] = 255
    exif = Image.Exif()
    exif[274] = 6
    file = saved(array, tmp_path / "turned.png", exif=exif)
    assert images.read(file).shape == (3, 16, 8) and images.read(file)[:, :4].min() == 255
    assert images.to_image(file).size == (8, 16) and audit.cues(file.read_bytes())["size"].tolist() == [16, 8]
    frames = [Image.new("RGB", (5, 5), colour) for colour in ("white", "black")]
    frames[0].save(tmp_path / "a.gif", save_all=True, append_images=frames[1:])
    assert images.read(tmp_path / "a.gif").min() == 255


@pytest.mark.parametrize("orientation", range(1, 9))
def test_a_turned_photograph_is_read_upright(tmp_path, orientation):
    """As datasets.Image() reads it, which applies the camera's orientation too."""
    exif, file = Image.Exif(), tmp_path / "turned.png"
    exif[0x0112] = orientation
    Image.fromarray(np.random.default_rng(0).integers(0, 256, (20, 40, 3), dtype=np.uint8)).save(file, exif=exif)
    expected = datasets.Image().decode_example({"path": str(file), "bytes": None})
    assert torch.equal(images.read(file), torch.from_numpy(np.array(expected)).permute(2, 0, 1))
    assert images.read(file).shape == ((3, 20, 40) if orientation < 5 else (3, 40, 20))


# ---- what is no picture -----------------------------------------------------------------------------------------

EPS = b"%!PS-Adobe-3.0 EPSF-3.0\n%%BoundingBox: 0 0 10 10\n%%EndComments\nshowpage\n%%EOF\n"


@pytest.mark.slow
def test_no_program_is_started_by_a_picture(tmp_path):
    """An EPS under a PNG's name, with a Ghostscript on the path that leaves a trace."""
    (tmp_path / "bin").mkdir()
    for name in ("gs", "gswin32c", "gswin64c"):
        (tmp_path / f"bin/{name}").write_text(f"#!/bin/sh\ntouch {tmp_path}/started\nexit 1\n")
        (tmp_path / f"bin/{name}").chmod(0o755)
    (tmp_path / "mine").mkdir()
    (tmp_path / "mine/x.png").write_bytes(EPS)
    saved(np.zeros((9, 9, 3), np.uint8), tmp_path / "mine/y.png")
    pillow = "from PIL import Image; Image.open('{0}/mine/x.png').load()"
    ours = """
from icthp import images; from icthp.data import audit; from icthp.evaluation import gallery, gallery_page
from icthp.scorers import loading
s = {{"jpeg": loading.load("jpeg")}}
t = gallery.score(s, gallery.read("{0}/mine", "{0}"), "{0}/store")
gallery_page.write_html("{0}/g.html", s, t, "t")
assert "none of PNG" in t.error[0] and t.jpeg.notna().tolist() == [False, True]
assert images.decode_error(open("{0}/mine/x.png", "rb").read())
try:
    audit.cues(open("{0}/mine/x.png", "rb").read())
except ValueError:
    print("refused")
"""
    path = {"PATH": f"{tmp_path / 'bin'}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT / "lib")}
    shell = lambda code: subprocess.run(
        [sys.executable, "-c", code.format(tmp_path)], env=os.environ | path, capture_output=True, text=True
    )
    done = shell(ours)
    assert done.stdout.strip().endswith("refused") and not (tmp_path / "started").exists(), done.stderr[-2000:]
    shell(pillow)
    assert (tmp_path / "started").exists()  # so the trap works


def test_whatever_a_decoder_raises_names_the_file(tmp_path, monkeypatch):
    """Cut and damaged files of every format; a broken AVIF raises RuntimeError, EXIF TypeError."""
    draw, kinds = np.random.default_rng(0), set()
    picture = Image.fromarray(draw.integers(0, 256, (40, 40, 3), dtype=np.uint8))
    for format in ("AVIF", "PNG", "WEBP", "TIFF", "GIF", "JPEG2000", "QOI"):
        picture.save(buffer := io.BytesIO(), format)
        for _ in range(25):
            damaged = bytearray(buffer.getvalue())
            for i in draw.integers(0, len(damaged), 20):
                damaged[i] = draw.integers(256)
            try:
                images.read(io.BytesIO(damaged))
            except ValueError as error:
                kinds.add(type(error.__cause__))
                assert images.decode_error(bytes(damaged)).startswith("cannot be read: ")
    assert RuntimeError in kinds and len(kinds) > 2
    monkeypatch.setattr(Image.Image, "getexif", lambda self: {}[0])
    with pytest.raises(ValueError, match="x.png cannot be read"):
        images.read(saved(np.zeros((4, 4, 3), np.uint8), tmp_path / "x.png"))


def test_odd_names_are_the_rows_error_and_the_others_are_scored(tmp_path):
    """A pipe, a folder, a device, a name that is too long, one that holds a null, one that is not UTF-8."""
    (tmp_path / "mine").mkdir()
    good = saved(np.zeros((9, 9, 3), np.uint8), tmp_path / "mine/y.png")
    os.mkfifo(tmp_path / "mine/a.png")
    with open(os.fsencode(tmp_path / "mine") + b"/b\xfcro.png", "wb") as file:
        file.write(good.read_bytes())
    table = gallery.read(str(tmp_path / "mine"), tmp_path)
    odd = [str(tmp_path), "/dev/zero", str(tmp_path / ("n" * 5000 + ".png")), "a\0b.png", str(tmp_path / "gone.png")]
    table = pd.concat([table, pd.DataFrame({"image": odd, "prompt": None})], ignore_index=True)
    jpeg = {"jpeg": loading.load("jpeg")}
    table = gallery.score(jpeg, table, tmp_path / "store")
    assert table.jpeg.notna().tolist() == [False, False, True] + [False] * 5 and len(table.error[5]) < 400
    assert "not a regular file" in table.error[0] and "not UTF-8" in table.error[1] and "no such file" in table.error[7]
    table.to_parquet(tmp_path / "t.parquet")
    page = gallery_page.write_html(tmp_path / "g.html", jpeg, table, "t").read_text(encoding="utf-8")
    assert page.count("<figure") == 1 and page.count("<li>") == 7


def test_a_folder_lists_all_that_is_read_and_counts_the_rest(tmp_path):
    picture = Image.new("RGB", (9, 9))
    formats = {"a.png": "PNG", "b.avif": "AVIF", "c.jfif": "JPEG", "d.JPE": "JPEG", "e.jp2": "JPEG2000", "f.pgm": "PPM", "g.qoi": "QOI"}
    for name, format in formats.items():
        picture.save(tmp_path / name, format)
    for name in (".hidden.png", "notes.txt", "more.txt", "README", "x.heic", "old.eps"):
        (tmp_path / name).write_bytes(b"x")
    (tmp_path / "deeper.png").mkdir()
    table = images.read_table(tmp_path)
    assert [p.rsplit("/", 1)[1] for p in table.image] == list(formats)
    assert all(images.read(p).shape == (3, 9, 9) for p in table.image)
    assert table.attrs["left_out"] == {"hidden files": 1, "files without an ending": 1, "sub-folders": 1, "files that end in .txt": 2,
                                       "files that end in .heic": 1, "files that end in .eps": 1}  # fmt: skip
    scored = gallery.score({"jpeg": loading.load("jpeg")}, table, tmp_path / "store")
    assert any("sub-folders (1)" in line and ".txt (2)" in line for line in gallery.account({"jpeg": loading.load("jpeg")}, scored))


def test_bytes_are_encoded_as_they_are():
    """uint8 and the same pixels as floats make one file; sizes are of the file."""
    pixels = torch.randint(256, (2, 3, 20, 30), dtype=torch.uint8, generator=torch.Generator().manual_seed(0))
    assert images.encode(pixels) == images.encode(pixels.float() / 255)
    assert torch.equal(images.read(io.BytesIO(images.encode(pixels)[1]["bytes"])), pixels[1])
    sizes = [len(file["bytes"]) for file in images.encode(pixels, "JPEG", quality=95)]
    assert images.jpeg_bytes(pixels).tolist() == images.jpeg_bytes(pixels.float() / 255).tolist() == sizes


# ---- memory -----------------------------------------------------------------------------------------------------

PEAK = """
import resource, sys
import torch
from PIL import Image
from icthp.evaluation import gallery, gallery_page; from icthp.scorers import loading
torch.set_num_threads(1)
folder, work, clip = sys.argv[1:]
loaded = {"jpeg": loading.load("jpeg"), "clip": loading.load("clip", "local-dir:" + clip)}
for scorer in loaded.values():
    scorer.score(torch.zeros(1, 3, 64, 64, dtype=torch.uint8), ["a"])
peak = lambda: resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024
before = peak()
table = gallery.score(loaded, gallery.read(folder, work).assign(prompt="a red circle"), work)
print(peak() - before, *table.error.fillna("scored"), sep="\\n")
"""


@pytest.mark.skipif(sys.platform == "darwin", reason="reads ru_maxrss as Linux counts it")
def test_large_pictures_are_scored_in_bounded_memory(tmp_path, clip_folder):
    """Five photographs of 24 megapixels, turned by their camera: one is in memory at a time. A PNG of 13,000 x 13,000 is refused unread."""
    (tmp_path / "mine").mkdir()
    exif = Image.Exif()
    exif[274] = 6
    smooth = Image.radial_gradient("L").resize((6000, 4000)).convert("RGB")
    for i in range(5):
        smooth.save(tmp_path / f"mine/{i}.jpg", exif=exif)
    Image.new("L", (13000, 13000)).save(tmp_path / "mine/9.png")
    command = [sys.executable, "-c", PEAK, tmp_path / "mine", tmp_path / "work", clip_folder]
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": str(ROOT / "lib")}, capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr[-2000:]
    peak, *rows = done.stdout.split("\n")[:7]
    assert rows[:5] == ["scored"] * 5 and "9.png cannot be read: it has 13000 x 13000 pixels, and at most 120 million" in rows[5]
    assert int(peak) < 0.5e9, f"{int(peak) / 1e9:.2f} GB above the loaded scorers"


def test_jpeg_sizes_compare_at_one_size(tmp_path):
    """The same picture at 64 and at 128 pixels: its own files differ by their pixels, at one side they hardly do."""

    small = torch.rand(1, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    sized = {side: torch.nn.functional.interpolate(small, (side, side), mode="bicubic").clamp(0, 1) for side in (64, 128)}
    for side, pixels in sized.items():
        (tmp_path / f"{side}.png").write_bytes(images.encode(pixels)[0]["bytes"])
    (tmp_path / "broken.png").write_bytes(b"no picture")
    assert images.common_side(sorted(tmp_path.iterdir())) == 64
    own, same = ({side: loading.load("jpeg", source).score(pixels).item() for side, pixels in sized.items()} for source in ("", "64"))
    assert own[128] > 1.5 * own[64] and same[128] == pytest.approx(same[64], rel=0.1) and same[64] == own[64]
    with pytest.raises(ValueError, match="can be opened"):
        images.common_side([tmp_path / "broken.png"])
    with pytest.raises(ValueError, match="side in pixels"):
        loading.load("jpeg", "big")
