"""TIFF: what its bands, samples and pages mean, and what is damaged or not to be read."""

import struct

import numpy as np
import pytest
import skimage.data

from basnet_runtime.media.image import pictures, tiff
from basnet_runtime.media.image.pictures import PictureFile, read_picture, vips_module
from basnet_torch.errors import MediaError
from tests.runtime.media.image.tiff_files import page
from tests.runtime.media.image.tiff_files import tiff as tiff_bytes

RGB = np.ascontiguousarray(skimage.data.coffee()[::8, ::8])
GRAY = np.ascontiguousarray(RGB[..., 1])
HEIGHT, WIDTH = GRAY.shape
BAND = np.tile(np.linspace(10, 240, WIDTH).astype(np.uint8), (HEIGHT, 1))


@pytest.fixture
def read(tmp_path):
    """Reads bytes as a TIFF: the frame and the notes."""

    def call(data, **options):
        (tmp_path / "a.tif").write_bytes(data)
        with PictureFile(tmp_path / "a.tif", **options) as picture:
            return picture.read(), picture.notes

    return call


def refused(read, data, **options):
    with pytest.raises(MediaError) as caught:
        read(data, **options)
    return str(caught.value).split("a.tif: ", 1)[1]


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("extra", "left_out"),
    [((0,), 1), ((0, 0), 2), ((0, 0, 0), 3)],
)
@pytest.mark.parametrize("color", [RGB, GRAY[..., None]], ids=["rgb", "gray"])
def test_saved_selections_are_left_out_and_said(read, order, extra, left_out, color):
    bands = np.dstack([color, *[BAND] * len(extra)])
    frame, notes = read(tiff_bytes(page(bands, extra=extra), order=order))
    assert frame.alpha_HW is None
    assert np.array_equal(frame.image_HWC, np.broadcast_to(color, RGB.shape))
    (note,) = notes
    assert note.startswith(f"{left_out} of its {bands.shape[2]} bands ")


@pytest.mark.parametrize(("extra", "at"), [((2,), 0), ((2, 0), 0), ((0, 2), 1), ((0, 0, 2), 2)])
def test_transparency_is_the_band_that_says_so(read, extra, at):
    others = [np.full_like(BAND, 7) for _ in extra]
    others[at] = BAND
    frame, notes = read(tiff_bytes(page(np.dstack([RGB, *others]), extra=extra)))
    assert np.array_equal(frame.alpha_HW, BAND)
    assert np.array_equal(frame.image_HWC, RGB)
    assert len(notes) == (len(extra) > 1)


def test_multiplied_transparency_is_divided_out(read):
    multiplied = np.rint(RGB * (BAND[..., None] / 255)).astype(np.uint8)
    frame, notes = read(tiff_bytes(page(np.dstack([multiplied, BAND]), extra=(1,))))
    assert np.array_equal(frame.alpha_HW, BAND)
    solid = BAND > 60
    assert np.abs(frame.image_HWC[solid].astype(int) - RGB[solid]).max() <= 4
    assert notes == []


def test_a_band_that_nothing_is_said_of(read):
    frame, notes = read(tiff_bytes(page(np.dstack([RGB, BAND]), photometric=2)))
    assert frame.alpha_HW is None
    assert notes == ["1 of its 4 bands is neither color nor transparency and left out"]


@pytest.mark.parametrize(("extra", "alpha", "left_out"), [((), False, 0), ((0, 0), False, 2), ((0, 2), True, 1)])
def test_four_inks_and_what_comes_after(read, extra, alpha, left_out):
    inks = np.dstack([255 - RGB, np.zeros_like(BAND)])
    frame, notes = read(tiff_bytes(page(np.dstack([inks, *[BAND] * len(extra)]), photometric=5, extra=extra)))
    plain, _ = read(tiff_bytes(page(inks, photometric=5)))
    assert np.array_equal(frame.image_HWC, plain.image_HWC)
    assert np.corrcoef(frame.image_HWC.ravel(), RGB.ravel())[0, 1] > 0.9
    assert (frame.alpha_HW is not None) == alpha
    assert len(notes) == (left_out > 0)


@pytest.mark.parametrize(
    ("kind", "top", "told"),
    [
        ("f4", 1, "floats, read as 0 to 1"),
        ("f2", 1, "floats, read as 0 to 1"),
        ("u4", 2**32 - 1, "32-bit integers, read as 0 to 4.29497e+09"),
        ("i4", 2**31 - 1, "signed 32-bit integers, read as 0 to 2.14748e+09 and what is negative as 0"),
        ("i2", 2**15 - 1, "signed 16-bit integers, read as 0 to 32767 and what is negative as 0"),
        ("i1", 127, "signed 8-bit integers, read as 0 to 127 and what is negative as 0"),
    ],
)
@pytest.mark.parametrize("bands", [RGB, GRAY], ids=["rgb", "gray"])
def test_samples_are_scaled_by_their_type_and_said(read, kind, top, told, bands):
    frame, notes = read(tiff_bytes(page((bands / 255 * top).astype(kind))))
    wanted = np.broadcast_to(np.atleast_3d(bands), RGB.shape)
    assert np.abs(frame.image_HWC.astype(int) - wanted).max() <= (2 if kind == "i1" else 1)
    assert notes == [f"its samples are {told}"]


def test_a_dark_picture_stays_dark_and_what_is_beyond_is_cut(read):
    values = np.float32([[0.01, 0.5, 1.0, 7.0, -3.0, np.nan]])
    frame, _ = read(tiff_bytes(page(np.repeat(values, 8, 0))))
    assert frame.image_HWC[0, :5, 0].tolist() == [2, 128, 255, 255, 0]


@pytest.mark.parametrize("bands", [RGB, GRAY], ids=["rgb", "gray"])
def test_floats_of_another_range_are_refused_and_not_white(read, bands):
    told = refused(read, tiff_bytes(page(bands.astype(np.float32))))
    assert told == "most of its samples are floats above 1, which is white; scale them to 0 to 1"


def test_eight_bits_of_lab_are_named(read):
    lab = page(np.full((16, 16, 3), 90, np.uint8), photometric=8)
    assert "L*a*b*" in refused(read, tiff_bytes(lab))


@pytest.mark.parametrize("space", ["lab", "labs", "xyz"])
def test_other_spaces_of_color(tmp_path, space):
    vips = vips_module()
    whole = vips.Image.new_from_memory(RGB.data, WIDTH, HEIGHT, 3, "uchar").copy(interpretation="srgb")
    whole.colourspace(space).tiffsave(str(tmp_path / "a.tif"))
    assert np.abs(read_picture(tmp_path / "a.tif").image_HWC.astype(int) - RGB).mean() < 3


def test_floats_with_transparency(read):
    values = np.dstack([RGB, BAND]).astype(np.float32) / 255
    frame, _ = read(tiff_bytes(page(values, extra=(2,))))
    assert np.abs(frame.alpha_HW.astype(int) - BAND).max() <= 1
    assert np.abs(frame.image_HWC.astype(int) - RGB).max() <= 1


@pytest.mark.parametrize(
    ("made", "told"),
    [
        (page((GRAY / 255).astype("f8")), "its samples have 64 bits; save it with 8 or 16 bits"),
        (page(GRAY, tags={258: (3, [12])}), "its samples have 12 bits; save it with 8 or 16 bits"),
        (page(GRAY.astype("c8")), "its samples are complex numbers; save it with 8 or 16 bits"),
        (page(GRAY, photometric=32803), "its pixels are raw data of a camera's sensor, which is not read"),
        (page(RGB, photometric=34892), "its pixels are raw data of a camera's sensor, which is not read"),
        (page(RGB, photometric=9), "its pixels are ICC L*a*b*, which is not read"),
        (page(RGB, photometric=777), "its pixels are photometric interpretation 777, which is not read"),
        (
            page(np.dstack([RGB, RGB]), photometric=5, tags={332: (3, [2])}),
            "its 6 inks are not cyan, magenta, yellow and black; convert it to RGB",
        ),
    ],
)
def test_samples_that_would_come_out_as_something_else(read, made, told):
    assert refused(read, tiff_bytes(made)).startswith(told)


@pytest.mark.parametrize(
    ("number", "name"),
    [
        (6, "old JPEG"),
        (9, "JBIG (T.85)"),
        (32909, "PixarLog"),
        (33005, "JPEG 2000 (Aperio)"),
        (34661, "JBIG"),
        (34712, "JPEG 2000"),
        (34887, "LERC"),
        (34925, "LZMA"),
        (50000, "Zstandard"),
        (50002, "JPEG XL"),
        (61234, "number 61234"),
    ],
)
@pytest.mark.parametrize("tile", [0, 16])
def test_a_compression_that_is_not_built_in_is_named(read, number, name, tile):
    told = refused(read, tiff_bytes(page(RGB, compression=number, tile=tile)))
    assert told == (
        f"cannot be read: this build of libvips has no {name}, which compresses it; save it with deflate or LZW"
    )


def saved(compression, tile):
    image = np.ascontiguousarray(skimage.data.coffee()[:240, :320])
    vips = vips_module()
    whole = vips.Image.new_from_memory(image.data, 320, 240, 3, "uchar").copy(interpretation="srgb")
    return whole.tiffsave_buffer(compression=compression, tile=tile, tile_width=64, tile_height=64)


@pytest.mark.parametrize("tile", [False, True], ids=["strips", "tiles"])
@pytest.mark.parametrize("filling", [b"\xff", b"\x00"], ids=["ones", "zeros"])
@pytest.mark.parametrize("compression", ["deflate", "lzw", "jpeg"])
def test_damaged_blocks_are_refused(read, compression, filling, tile):
    data = bytearray(saved(compression, tile))
    frame, _ = read(bytes(data))
    assert frame.image_HWC.shape == (240, 320, 3)
    middle = len(data) // 2
    data[middle : middle + 400] = filling * 400
    told = refused(read, bytes(data))
    assert told.startswith(("is damaged: ", "cannot be read: ")), told


@pytest.mark.parametrize("tile", [0, 16], ids=["strips", "tiles"])
@pytest.mark.parametrize("at", range(0, 200, 23))
def test_every_byte_of_deflated_blocks_is_checked(read, at, tile):
    data = bytearray(tiff_bytes(page(RGB, tile=tile)))
    data[60 + at] ^= 0x40
    assert refused(read, bytes(data)).startswith("is damaged: ")


def test_a_damaged_block_of_a_large_picture(tmp_path):
    data = bytearray(saved("deflate", tile=False))
    data[len(data) // 2] ^= 0xFF
    (tmp_path / "a.tif").write_bytes(data)
    with PictureFile(tmp_path / "a.tif") as picture, pytest.raises(MediaError, match="is damaged: strip"):
        list(picture.strips([slice(0, 100), slice(100, 240)]))


def test_a_header_that_libtiff_complains_of_is_no_damage(read):
    made = page(RGB, tags={296: (3, [9])})  # no such unit of resolution
    frame, _ = read(tiff_bytes(made))
    assert np.array_equal(frame.image_HWC, RGB)


SMALL = RGB[::4, ::4]
THUMBNAIL = {254: (4, [1])}


@pytest.mark.parametrize(
    ("pages", "told"),
    [
        ([page(SMALL, tags=THUMBNAIL), page(RGB)], "its first page is a thumbnail; page 2 is used"),
        ([page(SMALL, tags={255: (3, [2])}), page(RGB)], "its first page is a thumbnail; page 2 is used"),
        (
            [page(SMALL, tags=THUMBNAIL), page(SMALL[..., 0], photometric=4, tags={254: (4, [4])}), page(RGB)],
            "its first page is a thumbnail; page 3 is used",
        ),
        (
            [page(SMALL, tags=THUMBNAIL, inner=[page(SMALL, tags=THUMBNAIL), page(RGB)])],
            "its first page is a thumbnail; a page inside page 1 is used",
        ),
        ([page(RGB), page(SMALL, tags=THUMBNAIL)], "has 2 frames or pages; only the first is used"),
        ([page(RGB, inner=[page(SMALL, tags=THUMBNAIL)])], None),
    ],
)
@pytest.mark.parametrize("order", "<>")
def test_thumbnails_are_skipped(read, pages, told, order):
    frame, notes = read(tiff_bytes(*pages, order=order))
    assert np.array_equal(frame.image_HWC, RGB)
    assert notes == ([] if told is None else [told])


def test_a_file_of_thumbnails_alone_gives_the_first(read):
    frame, _ = read(tiff_bytes(page(SMALL, tags=THUMBNAIL), page(RGB, tags=THUMBNAIL)))
    assert np.array_equal(frame.image_HWC, SMALL)


def test_pages_by_number(read):
    data = tiff_bytes(page(SMALL, tags=THUMBNAIL), page(RGB), page(255 - RGB))
    for number, wanted in ((1, SMALL), (2, RGB), (3, 255 - RGB)):
        frame, notes = read(data, page=number)
        assert np.array_equal(frame.image_HWC, wanted)
        assert notes == []
    assert refused(read, data, page=4) == "has 3 pages; there is no page 4"
    assert refused(read, tiff_bytes(page(RGB)), page=2) == "has 1 page; there is no page 2"


def test_directories_in_a_circle_end(read):
    data = bytearray(tiff_bytes(page(RGB)))
    (start,) = struct.unpack_from("<I", data, 4)
    data[-4:] = struct.pack("<I", start)
    assert refused(read, bytes(data), page=7) == "has 1 page; there is no page 7"


@pytest.mark.parametrize("cut", [9, 40, 300])
def test_a_directory_beyond_the_end_is_one_line(read, cut):
    assert "\n" not in refused(read, tiff_bytes(page(RGB))[:-cut])


def test_a_directory_that_promises_gigabytes(tmp_path):
    data = bytearray(tiff_bytes(page(RGB)))
    at = data.index(struct.pack("<HH", 273, 4))
    data[at + 4 : at + 8] = struct.pack("<I", 0x7FFFFFFF)
    (tmp_path / "a.tif").write_bytes(data)
    with (tmp_path / "a.tif").open("rb") as file:
        assert tiff.chosen_page(file, None) is None


def test_large_files_in_the_form_for_large_files(tmp_path):
    vips = vips_module()
    whole = vips.Image.new_from_memory(RGB.data, WIDTH, HEIGHT, 3, "uchar").copy(interpretation="srgb")
    whole.tiffsave(str(tmp_path / "a.tif"), bigtiff=True, compression="deflate")
    with (tmp_path / "a.tif").open("rb") as file:
        found = tiff.chosen_page(file, None)
        assert found.value(256 + 3) == 8
        tiff.check_blocks(file, found, lambda _: None)
    assert np.array_equal(read_picture(tmp_path / "a.tif").image_HWC, RGB)


def test_what_we_write_keeps_its_transparency(tmp_path):
    pictures.write_picture(tmp_path / "a.tif", RGB, BAND)
    frame = read_picture(tmp_path / "a.tif")
    assert np.array_equal(frame.alpha_HW, BAND)
    assert np.array_equal(frame.image_HWC, RGB)


def test_errors_of_other_threads_are_no_damage(read, monkeypatch):
    upright = PictureFile._upright
    vips = vips_module()

    def disturbed(picture):
        vips.vips_lib.vips_foreign_find_save(b"a.nosuch")  # puts its reason down, as a failing writer does
        return upright(picture)

    monkeypatch.setattr(PictureFile, "_upright", disturbed)
    frame, _ = read(tiff_bytes(page(RGB)))
    assert np.array_equal(frame.image_HWC, RGB)


@pytest.mark.parametrize("tile", [False, True], ids=["strips", "tiles"])
def test_bytes_too_many_in_a_jpeg_are_no_damage(tmp_path, read, tile):
    data = saved("jpeg", tile)
    clean, _ = read(data)
    with (tmp_path / "a.tif").open("rb") as file:
        found = tiff.chosen_page(file, None)
    offsets, counts = (found.tags[tag] for tag in ((324, 325) if tile else (273, 279)))
    block = data[offsets[0] : offsets[0] + counts[0]]
    assert block[-2:] == b"\xff\xd9"
    longer = block[:-2] + b"\0\0" + block[-2:]  # of no meaning, before the end
    made = bytearray(data + longer)
    struct.pack_into("<I", made, data.rindex(struct.pack("<II", *offsets[:2])), len(data))
    struct.pack_into("<I", made, data.rindex(struct.pack("<II", *counts[:2])), len(longer))
    frame, _ = read(bytes(made))
    assert np.array_equal(frame.image_HWC, clean.image_HWC)


@pytest.mark.parametrize("kind", ["u1", "f4"])
@pytest.mark.parametrize("tile", [0, 16])
def test_strips_of_a_large_picture_are_those_of_the_whole(tmp_path, kind, tile):
    values = np.dstack([RGB, BAND, BAND[::-1]])
    values = values if kind == "u1" else (values / 255).astype(kind)
    data = tiff_bytes(page(RGB[::4, ::4], tags=THUMBNAIL), page(values, extra=(0, 2), tile=tile, tags={274: (3, [6])}))
    (tmp_path / "a.tif").write_bytes(data)
    whole = read_picture(tmp_path / "a.tif")
    with PictureFile(tmp_path / "a.tif") as picture:
        assert picture.upright_size == (WIDTH, HEIGHT)
        parts = [frame for _, frame in picture.strips([slice(0, 30), slice(30, WIDTH)])]
    assert np.array_equal(np.vstack([part.image_HWC for part in parts]), whole.image_HWC)
    assert np.array_equal(np.vstack([part.alpha_HW for part in parts]), whole.alpha_HW)
    assert np.abs(whole.image_HWC.astype(int) - np.rot90(RGB, -1)).max() <= 1
