"""Pictures in and out: orientation, color, depth, transparency, bombs and damage."""

from __future__ import annotations

import struct
import subprocess
import sys
import zlib
from pathlib import Path

import cv2
import numpy as np
import pytest
import pyvips
import skimage.data

from basnet_runtime.media.image.pictures import (
    PictureFile,
    check_picture_output,
    is_picture,
    read_picture,
    write_picture,
)
from basnet_torch.errors import MediaError, UsageError


@pytest.fixture(scope="module")
def coffee():
    return np.ascontiguousarray(skimage.data.coffee()[::4, ::4])


def tagged(pixels, name, value):
    image = vips(pixels).copy()
    image.set_type(pyvips.GValue.gint_type, name, value)
    return image


def vips(pixels, interpretation="srgb"):
    pixels = np.ascontiguousarray(pixels)
    kind = {"uint8": "uchar", "uint16": "ushort"}[pixels.dtype.name]
    bands = 1 if pixels.ndim == 2 else pixels.shape[2]
    image = pyvips.Image.new_from_memory(pixels.data, pixels.shape[1], pixels.shape[0], bands, kind)
    return image.copy(interpretation=interpretation)


STORED = {
    1: lambda image: image,
    2: lambda image: image[:, ::-1],
    3: lambda image: image[::-1, ::-1],
    4: lambda image: image[::-1],
    5: lambda image: image.swapaxes(0, 1),
    6: lambda image: np.rot90(image, 1),
    7: lambda image: image[::-1, ::-1].swapaxes(0, 1),
    8: lambda image: np.rot90(image, -1),
}


@pytest.mark.parametrize("orientation", STORED)
@pytest.mark.parametrize("suffix", [".jpg", ".webp"])
def test_all_eight_orientations(tmp_path, coffee, orientation, suffix):
    stored = tagged(STORED[orientation](coffee), "orientation", orientation)
    stored.write_to_file(str(tmp_path / f"a{suffix}"), Q=97)
    frame = read_picture(tmp_path / f"a{suffix}")
    assert frame.image_HWC.shape == coffee.shape
    assert np.abs(frame.image_HWC.astype(int) - coffee).mean() < 4


def test_png_is_exact_and_writable(tmp_path, coffee):
    write_picture(tmp_path / "a.png", coffee)
    frame = read_picture(tmp_path / "a.png")
    assert (frame.image_HWC == coffee).all()
    assert frame.alpha_HW is None
    frame.image_HWC[:] = 0


@pytest.mark.parametrize("suffix", [".png", ".webp", ".tif"])
def test_transparency_comes_back(tmp_path, coffee, suffix):
    alpha = np.broadcast_to(np.arange(coffee.shape[1], dtype=np.uint8), coffee.shape[:2]).copy()
    write_picture(tmp_path / f"a{suffix}", coffee, alpha)
    frame = read_picture(tmp_path / f"a{suffix}")
    assert (frame.alpha_HW == alpha).all()
    assert (frame.image_HWC[:, 1:] == coffee[:, 1:]).all()


def test_transparent_parts_are_white_to_the_network(tmp_path, coffee):
    write_picture(tmp_path / "a.png", coffee, np.zeros(coffee.shape[:2], np.uint8))
    assert (read_picture(tmp_path / "a.png").flattened() == 255).all()


def test_opaque_alpha_is_no_alpha(tmp_path, coffee):
    write_picture(tmp_path / "a.png", coffee, np.full(coffee.shape[:2], 255, np.uint8))
    assert read_picture(tmp_path / "a.png").alpha_HW is None


def test_sixteen_bits(tmp_path, coffee):
    deep = np.dstack([coffee.astype(np.uint16) * 257, np.full(coffee.shape[:2], 128 * 257, np.uint16)])
    vips(deep, "rgb16").write_to_file(str(tmp_path / "a.png"), bitdepth=16)
    frame = read_picture(tmp_path / "a.png")
    assert np.abs(frame.image_HWC.astype(int) - coffee).max() <= 1
    assert frame.alpha_HW is not None
    assert (frame.alpha_HW == 128).all()


def test_gray_and_palette(tmp_path, coffee):
    gray = coffee[..., 1]
    vips(gray, "b-w").write_to_file(str(tmp_path / "gray.png"))
    assert (read_picture(tmp_path / "gray.png").image_HWC == gray[..., None]).all()
    few = (coffee // 128 * 255).astype(np.uint8)
    vips(few).write_to_file(str(tmp_path / "few.png"), palette=True)
    assert np.abs(read_picture(tmp_path / "few.png").image_HWC.astype(int) - few).mean() < 3


def test_cmyk(tmp_path, coffee):
    vips(coffee).colourspace("cmyk").write_to_file(str(tmp_path / "a.jpg"), Q=97)
    assert np.abs(read_picture(tmp_path / "a.jpg").image_HWC.astype(int) - coffee).mean() < 12


def test_wide_colors_become_srgb(tmp_path, coffee):
    vips(coffee).icc_transform("p3").write_to_file(str(tmp_path / "a.png"))
    raw = np.asarray(pyvips.Image.new_from_file(str(tmp_path / "a.png")))
    assert np.abs(raw.astype(int) - coffee).max() > 8
    assert np.abs(read_picture(tmp_path / "a.png").image_HWC.astype(int) - coffee).mean() < 2


@pytest.mark.parametrize("suffix", [".bmp", ".jp2"])
def test_opencv_formats(tmp_path, coffee, suffix):
    path = tmp_path / f"ä{suffix}"
    path.write_bytes(cv2.imencode(suffix, coffee[..., ::-1])[1].tobytes())
    with PictureFile(path) as picture:
        assert (picture.height, picture.width) == coffee.shape[:2]
        assert np.abs(picture.read().image_HWC.astype(int) - coffee).mean() < 5


def test_animation_uses_the_first_frame_and_says_so(tmp_path, coffee):
    strip = tagged(np.concatenate([coffee, 255 - coffee]), "page-height", coffee.shape[0])
    strip.write_to_file(str(tmp_path / "a.webp"), lossless=True)
    with PictureFile(tmp_path / "a.webp") as picture:
        frame = picture.read()
        assert picture.notes == ["has 2 frames or pages; only the first is used"]
    assert (frame.image_HWC == coffee).all()


def test_bombs_are_refused_from_the_header(tmp_path):
    head = struct.pack(">IIBBBBB", 60000, 60000, 8, 2, 0, 0, 0)
    chunk = b"IHDR" + head
    png = b"\x89PNG\r\n\x1a\n" + struct.pack(">I", 13) + chunk + struct.pack(">I", zlib.crc32(chunk))
    data = b"IDAT" + zlib.compress(b"\0" * 1000)
    png += struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data))
    (tmp_path / "a.png").write_bytes(png)
    with pytest.raises(MediaError, match=r"60000x60000 is 3600 megapixels, above the limit of 300 \(--max-pixels\)"):
        read_picture(tmp_path / "a.png")
    (tmp_path / "a.bmp").write_bytes(b"BM" + bytes(12) + struct.pack("<Iii", 40, 50000, -50000) + bytes(40))
    with pytest.raises(MediaError, match="2500 megapixels, above the limit of 100"):
        read_picture(tmp_path / "a.bmp")


def test_max_pixels_counts_transparency(tmp_path, coffee):
    pixels = coffee.shape[0] * coffee.shape[1]
    write_picture(tmp_path / "a.png", coffee, np.zeros(coffee.shape[:2], np.uint8))
    with pytest.raises(MediaError, match="with transparency"):
        read_picture(tmp_path / "a.png", max_pixels=pixels)
    assert read_picture(tmp_path / "a.png", max_pixels=pixels * 2).alpha_HW is not None


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".bmp", ".webp", ".tif"])
def test_truncated_is_one_line(tmp_path, coffee, suffix):
    path = tmp_path / f"a{suffix}"
    if suffix == ".bmp":
        path.write_bytes(cv2.imencode(suffix, coffee)[1].tobytes()[:300])
    else:
        write_picture(path, coffee)
        path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(MediaError, match=rf"a\{suffix}: cannot be read: \w") as error:
        read_picture(path)
    assert "\n" not in str(error.value)


@pytest.mark.parametrize(("content", "told"), [(b"", "is empty"), (b"hello, world", "unsupported image format")])
def test_no_picture(tmp_path, content, told):
    (tmp_path / "a.jpg").write_bytes(content)
    with pytest.raises(MediaError, match=told):
        read_picture(tmp_path / "a.jpg")
    assert not is_picture(tmp_path / "a.jpg")


def test_missing_folder_and_unreadable(tmp_path):
    with pytest.raises(MediaError, match="no such file"):
        read_picture(tmp_path / "a.jpg")
    with pytest.raises(MediaError, match="is a directory"):
        read_picture(tmp_path)


def test_names_that_libvips_would_misread(tmp_path, coffee):
    path = tmp_path / "ü [page=1] 100%.png"
    write_picture(path, coffee)
    assert (read_picture(path).image_HWC == coffee).all()


def test_large_pictures_with_alpha_are_split_in_strips(tmp_path, coffee, monkeypatch):
    from basnet_runtime.media.image import pictures

    alpha = coffee[..., 2].copy()
    write_picture(tmp_path / "a.png", coffee, alpha)
    monkeypatch.setattr(pictures, "_SPLIT_PIXELS", 10)
    monkeypatch.setattr(pictures, "_STRIP_PIXELS", 1000)
    frame = read_picture(tmp_path / "a.png")
    assert (frame.alpha_HW == alpha).all()
    assert (frame.image_HWC == coffee).all()


def test_outputs_are_checked(tmp_path, coffee):
    with pytest.raises(UsageError, match="holds no transparency"):
        check_picture_output(tmp_path / "a.jpg", alpha=True)
    with pytest.raises(UsageError, match=r"not \.xyz"):
        check_picture_output(tmp_path / "a.xyz", alpha=False)
    write_picture(tmp_path / "a.png", coffee)
    with pytest.raises(MediaError, match="exists already"):
        write_picture(tmp_path / "a.png", coffee)
    write_picture(tmp_path / "a.png", coffee, overwrite=True)
    assert [path.name for path in tmp_path.iterdir()] == ["a.png"]


def test_unwritable_folder(tmp_path, coffee):
    (tmp_path / "file").write_text("x")
    with pytest.raises(MediaError, match="cannot be written"):
        write_picture(tmp_path / "file" / "a.png", coffee)


REFUSED = {
    "pil_broken.png",
    "pil_broken_data_stream.png",
    "pil_decompression_bomb.gif",
    "pil_truncated_image.png",
    "pil_truncated_jpeg.jpg",
    "pil_ultrahdr.jpg",
    "pil_zero_width.gif",
    "sharp_corrupt-header.jpg",
    "sharp_truncated.jpg",
    "sharp_truncated.png",
    "sharp_vfile.v",
    "text_renamed.jpg",
    "zero_byte.jpg",
}
_READ_ALL = """
import re, sys
from pathlib import Path
from basnet_runtime.media.image.pictures import read_picture
from basnet_torch.errors import MediaError
for path in sorted(Path(sys.argv[1]).iterdir()):
    try:
        read_picture(path)
    except MediaError as error:
        print(path.name)
# The kernel's own mark: getrusage in a child begins at the size of the process that started it.
assert int(re.search(r"VmHWM:\\s+(\\d+)", Path("/proc/self/status").read_text())[1]) < 1_000_000
"""


@pytest.mark.shared
def test_odd_pictures(data_root):
    answer = subprocess.run(
        [sys.executable, "-c", _READ_ALL, str(data_root / "odd")], capture_output=True, text=True, check=False
    )
    assert (answer.returncode, answer.stderr) == (0, "")
    assert set(answer.stdout.split()) == REFUSED


@pytest.mark.shared
def test_real_orientations_agree(data_root):
    upright = read_picture(data_root / "odd" / "exif_Landscape_1.jpg").image_HWC.astype(int)
    for orientation in range(2, 9):
        turned = read_picture(Path(data_root) / "odd" / f"exif_Landscape_{orientation}.jpg").image_HWC
        assert np.abs(turned - upright).mean() < 6


def with_exif(path, coffee, orientation=6, **options):
    """A JPEG with a camera's words, a thumbnail that shows everything, XMP, 300 dots per inch and a profile."""
    import io

    import PIL.Image

    thumbnail = io.BytesIO()
    PIL.Image.fromarray(coffee[::2, ::2]).save(thumbnail, "jpeg")
    image = vips(STORED[orientation](coffee)).icc_transform("p3").copy(xres=300 / 25.4, yres=150 / 25.4)
    image.set_type(pyvips.GValue.gint_type, "orientation", orientation)
    image.set_type(pyvips.GValue.gstr_type, "exif-ifd0-Artist", "Jane Doe")
    image.set_type(pyvips.GValue.blob_type, "jpeg-thumbnail-data", thumbnail.getvalue())
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="6" dc:title="Coffee"/></x:xmpmeta>'
    image.set_type(pyvips.GValue.blob_type, "xmp-data", xmp)
    image.write_to_file(str(path), **options)
    assert thumbnail.getvalue()[-400:-100] in path.read_bytes()
    return thumbnail.getvalue()


@pytest.mark.parametrize("suffix", [".jpg", ".png", ".webp", ".tif"])
def test_metadata_survive_but_orientation_and_thumbnail(tmp_path, coffee, suffix):
    import PIL.Image

    thumbnail = with_exif(tmp_path / "in.jpg", coffee, Q=97)
    frame = read_picture(tmp_path / "in.jpg")
    write_picture(tmp_path / f"out{suffix}", frame.image_HWC, metadata=frame.metadata)
    written = (tmp_path / f"out{suffix}").read_bytes()
    assert thumbnail[-400:-100] not in written
    again = read_picture(tmp_path / f"out{suffix}")
    assert again.image_HWC.shape == coffee.shape  # upright, and not turned a second time
    assert np.abs(again.image_HWC.astype(int) - coffee).mean() < 6
    with PIL.Image.open(tmp_path / f"out{suffix}") as found:  # another library's eyes
        exif, profile = found.getexif(), found.info["icc_profile"]
        assert exif.get(274, 1) == 1
        if suffix != ".tif":
            assert exif[315] == "Jane Doe"
        if suffix in (".png", ".tif"):  # WebP has EXIF's alone, and of a JPEG PIL gives EXIF's first
            assert found.info["dpi"] == pytest.approx((150, 300), abs=0.1)  # turned as well
        if suffix != ".tif":
            assert (exif[282], exif[283]) == pytest.approx((150, 300), abs=0.1)
    assert b"\0s\0R\0G\0B" in profile  # its description is UTF-16
    xmp = bytes(pyvips.Image.new_from_file(str(tmp_path / f"out{suffix}")).get("xmp-data"))
    assert b'tiff:Orientation="1" dc:title="Coffee"' in xmp


def test_a_mask_keeps_the_resolution_alone(tmp_path, coffee):
    from basnet_runtime.media.image.metadata import surviving

    with_exif(tmp_path / "in.jpg", coffee, orientation=1)
    kept = surviving(read_picture(tmp_path / "in.jpg").metadata, is_mask=True)
    assert kept is not None
    assert (kept.exif, kept.xmp, kept.profile) == (None, None, False)
    assert kept.x_per_mm == pytest.approx(300 / 25.4, abs=0.01)


@pytest.mark.parametrize(
    "damage", [b"Exif\0\0", b"Exif\0\0II*\0\xff\xff\xff\xff", b"", b"Exif\0\0MM\0*\0\0\0\x08\xff\xff"]
)
def test_damaged_exif_is_left_out(damage):
    from basnet_runtime.media.image.metadata import clean_exif

    assert clean_exif(damage) is None


def png_with(path, pixels, name, data, at=33):
    """A PNG with one more chunk, and no EXIF of libvips' own making."""
    vips(pixels).write_to_file(str(path), keep="none")
    png, data = path.read_bytes(), name + data
    path.write_bytes(
        png[:at] + struct.pack(">I", len(data) - 4) + data + struct.pack(">I", zlib.crc32(data)) + png[at:]
    )


def test_orientation_in_xmp_and_in_png_text(tmp_path, coffee):
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="3"/></x:xmpmeta>'
    png_with(tmp_path / "a.png", STORED[3](coffee), b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp)
    exif = b"Exif\0\0" + b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, 3, 0, 0)
    text = f"\nexif\n{len(exif):8}\n{exif.hex()}\n"
    png_with(tmp_path / "b.png", STORED[3](coffee), b"tEXt", b"Raw profile type exif\0" + text.encode())
    for name in ("a.png", "b.png"):
        assert (read_picture(tmp_path / name).image_HWC == coffee).all()


def test_png_chunks_behind_the_pixels(tmp_path, coffee):
    """Where ExifTool writes them."""
    exif = b"II*\0" + struct.pack("<IHHHIHHI", 8, 1, 0x112, 3, 1, 3, 0, 0)
    xmp = b'<x:xmpmeta xmlns:x="adobe:ns:meta/"><a tiff:Orientation="3" b="me"/></x:xmpmeta>'
    chunks = {
        "exif": (b"eXIf", exif),
        "xmp": (b"iTXt", b"XML:com.adobe.xmp\0\0\0\0\0" + xmp),
        "packed": (b"iTXt", b"XML:com.adobe.xmp\0\1\0en\0XMP\0" + zlib.compress(xmp)),
    }
    for kind, (name, data) in chunks.items():
        path = tmp_path / f"{kind}.png"
        png_with(path, STORED[3](coffee), name, data, at=-12)
        frame = read_picture(path)
        assert (frame.image_HWC == coffee).all()
        expected = (xmp.replace(b'"3"', b'"1"'), None) if kind != "exif" else (None, exif.replace(b"\3\0\1", b"\3\0\1"))
        assert frame.metadata.xmp == expected[0]
        assert (frame.metadata.exif is None) == (kind != "exif")
        path.write_bytes(path.read_bytes()[:-13] + b"?" + path.read_bytes()[-12:])  # its checksum is false
        assert (read_picture(path).image_HWC == STORED[3](coffee)).all()


def test_a_side_too_long_for_the_format(tmp_path):
    strip = np.zeros((1, 16_384, 3), np.uint8)
    with pytest.raises(MediaError, match=r"16384x1 is too large for \.webp"):
        write_picture(tmp_path / "a.webp", strip)
    write_picture(tmp_path / "a.jpg", strip)


@pytest.fixture
def heic(tmp_path, coffee):
    pillow_heif = pytest.importorskip("pillow_heif")
    alpha = np.broadcast_to(np.linspace(0, 255, coffee.shape[1]).astype(np.uint8), coffee.shape[:2])
    for name, mode, pixels in (("a.heic", "RGB", coffee), ("alpha.heic", "RGBA", np.dstack([coffee, alpha]))):
        size = (coffee.shape[1], coffee.shape[0])
        pillow_heif.encode(mode, size, pixels.tobytes(), str(tmp_path / name), quality=95)
    return tmp_path


def test_heic(heic, coffee):
    frame = read_picture(heic / "a.heic")
    assert frame.alpha_HW is None
    assert np.abs(frame.image_HWC.astype(int) - coffee).mean() < 6
    clear = read_picture(heic / "alpha.heic")
    assert clear.alpha_HW is not None
    assert np.abs(clear.alpha_HW[0].astype(int) - np.linspace(0, 255, coffee.shape[1])).mean() < 3
    with pytest.raises(MediaError, match="--max-pixels"):
        read_picture(heic / "a.heic", max_pixels=1000)
    data = (heic / "a.heic").read_bytes()
    (heic / "cut.heic").write_bytes(data[: len(data) // 2])
    with pytest.raises(MediaError, match=r"cut\.heic: cannot be read") as error:
        read_picture(heic / "cut.heic")
    assert "\n" not in str(error.value)


def test_a_heic_of_several_pictures_says_so(tmp_path, coffee):
    pillow_heif = pytest.importorskip("pillow_heif")
    file = pillow_heif.HeifFile()
    for image in (coffee, coffee[::-1]):
        file.add_frombytes("RGB", image.shape[1::-1], image.tobytes())
    file.save(str(tmp_path / "a.heic"), quality=95)
    told = ["has 2 pictures; only the main one is used, --page N takes another"]
    for page, expected, notes in ((None, coffee, told), (2, coffee[::-1], [])):
        with PictureFile(tmp_path / "a.heic", page=page) as picture:
            shown = picture.read().image_HWC
        assert np.abs(shown.astype(int) - expected).mean() < 6
        assert picture.notes == notes


def test_heic_without_its_library(heic, monkeypatch):
    monkeypatch.setitem(sys.modules, "pillow_heif", None)
    with pytest.raises(MediaError, match=r"HEIC needs pillow-heif; pip install 'basnet-deploy\[heic\]'"):
        read_picture(heic / "a.heic")


def test_messages_that_quote_a_files_bytes(tmp_path, coffee):
    """The binding fails on them and leaves them to spoil the next error."""
    tagged(coffee, "orientation", 6).write_to_file(str(tmp_path / "a.avif"))
    data = (tmp_path / "a.avif").read_bytes()
    assert b"irot" in data
    (tmp_path / "bad.avif").write_bytes(data.replace(b"irot", b"ir`\xea"))
    (tmp_path / "none.png").write_text("no picture")
    for name in ("bad.avif", "none.png"):
        with pytest.raises(MediaError, match=rf"{name}: cannot be read: \w"):
            read_picture(tmp_path / name)
    write_picture(tmp_path / "good.png", coffee)
    assert (read_picture(tmp_path / "good.png").image_HWC == coffee).all()
