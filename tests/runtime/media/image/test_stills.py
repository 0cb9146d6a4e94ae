"""Pictures of every format that an installed library reads, told by their content, and one line for the others."""

import struct
import zlib
from fractions import Fraction

import av
import cv2
import numpy as np
import pytest
import skimage.data

from basnet_runtime.command.jobs import media_of
from basnet_runtime.media.formats import is_video_head, picture_format
from basnet_runtime.media.image import stills
from basnet_runtime.media.image.pictures import PictureFile, is_picture, read_picture, vips_module
from basnet_torch.errors import MediaError

RGB = np.ascontiguousarray(skimage.data.coffee()[::6, ::6])
ALPHA = np.tile(np.linspace(0, 255, RGB.shape[1]).astype(np.uint8), (RGB.shape[0], 1))
GRAY = cv2.cvtColor(RGB, cv2.COLOR_RGB2GRAY)


def encoded(codec, form, pixels=RGB):
    """A picture by one of FFmpeg's encoders."""
    encoder = av.CodecContext.create(codec, "w")
    encoder.height, encoder.width = pixels.shape[:2]
    encoder.pix_fmt, encoder.time_base = form, Fraction(1, 25)
    frame = av.VideoFrame.from_ndarray(pixels, format="rgba" if pixels.shape[2] == 4 else "rgb24").reformat(format=form)
    frame.pts = 0
    return b"".join(bytes(packet) for packet in [*encoder.encode(frame), *encoder.encode(None)])


def jpeg_ls(*segments):
    data = encoded("jpegls", "rgb24")
    return data[:2] + b"".join(segments) + data[2:]


SPIFF = b"\xff\xe8" + struct.pack(">H6s4BII4BII", 32, b"SPIFF", 1, 2, 1, 3, *RGB.shape[:2], 10, 8, 5, 1, 72, 72)


def header(kind, *lines):
    return "\n".join([kind, *lines, ""]).encode()


EXACT = {
    "a.tga": lambda: encoded("targa", "bgr24"),
    "a.qoi": lambda: encoded("qoi", "rgb24"),
    "a.pcx": lambda: encoded("pcx", "rgb24"),
    "a.sgi": lambda: encoded("sgi", "rgb24"),
    "a.ppm": lambda: encoded("ppm", "rgb24"),
    "a.pam": lambda: encoded("pam", "rgb24"),
    "a.dpx": lambda: encoded("dpx", "rgb24"),
    "a.jls": lambda: encoded("jpegls", "rgb24"),
    # The end of a directory of SPIFF holds a second beginning.
    "b.jls": lambda: jpeg_ls(SPIFF, b"\xff\xe8\0\x08\0\0\0\1\xff\xd8"),
    "c.jls": lambda: jpeg_ls(b"\xff\xe0\0\x10JFIF\0\1\1\0\0\1\0\1\0\0", b"\xff\xff\xfe\0\x07hello"),
    "a.bmp": lambda: encoded("bmp", "bgr24"),
    "a.jp2": cv2.imencode(".jp2", RGB[..., ::-1], [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000])[1].tobytes,
    "a.ras": cv2.imencode(".ras", RGB[..., ::-1])[1].tobytes,
    "b.ppm": lambda: header(
        "P3", "# plain text", f"{RGB.shape[1]} {RGB.shape[0]}", "255", " ".join(map(str, RGB.flat))
    ),
    "b.pam": lambda: (
        header("P7", f"WIDTH {RGB.shape[1]}", f"HEIGHT {RGB.shape[0]}", "DEPTH 3", "MAXVAL 255", "ENDHDR")
        + RGB.tobytes()
    ),
}


# Targa has a signature of its own only at its end, which not all writers write.
@pytest.mark.parametrize(
    ("name", "renamed"),
    [
        *((name, name) for name in EXACT),
        *((name, other) for name in EXACT for other in ("a", "a.dat", "a.jpg", "a.mp4") if name != "a.tga"),
    ],
)
def test_by_content_whatever_the_name(tmp_path, name, renamed):
    path = tmp_path / renamed
    path.write_bytes(EXACT[name]())
    assert media_of(path) == "picture"
    assert is_picture(path)
    frame = read_picture(path)
    assert np.array_equal(frame.image_HWC, RGB)
    assert frame.alpha_HW is None


def test_targa_by_its_footer_or_suffix(tmp_path):
    data = encoded("targa", "bgr24")[:-26]
    footer = struct.pack("<II", 0, 0) + b"TRUEVISION-XFILE.\0"
    for name, content, is_one in (("a.dat", data, False), ("a.dat", data + footer, True), ("a.icb", data, True)):
        (tmp_path / name).write_bytes(content)
        assert (picture_format(content, name[1:], lambda content=content: content[-26:]) is not None) == is_one
    assert np.array_equal(read_picture(tmp_path / "a.dat").image_HWC, RGB)
    assert np.array_equal(read_picture(tmp_path / "a.icb").image_HWC, RGB)


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [("a.tga", "targa", "bgra"), ("a.qoi", "qoi", "rgba"), ("a.pam", "pam", "rgba"), ("a.sgi", "sgi", "rgba")],
)
def test_transparency(tmp_path, name, codec, form):
    (tmp_path / name).write_bytes(encoded(codec, form, np.dstack([RGB, ALPHA])))
    frame = read_picture(tmp_path / name)
    assert np.array_equal(frame.image_HWC, RGB)
    assert np.array_equal(frame.alpha_HW, ALPHA)


def test_a_fourth_channel_that_a_targa_calls_no_transparency(tmp_path):
    data = bytearray(encoded("targa", "bgra", np.dstack([RGB, np.zeros_like(ALPHA)])))
    data[17] &= 0xF0
    (tmp_path / "a.tga").write_bytes(data)
    frame = read_picture(tmp_path / "a.tga")
    assert frame.alpha_HW is None
    assert np.array_equal(frame.image_HWC, RGB)


@pytest.mark.parametrize("suffix", [".jp2", ".bmp"])
def test_transparency_through_opencv(tmp_path, suffix):
    bgra = np.dstack([RGB[..., ::-1], ALPHA])
    options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000] if suffix == ".jp2" else []
    (tmp_path / f"a{suffix}").write_bytes(cv2.imencode(suffix, bgra, options)[1].tobytes())
    frame = read_picture(tmp_path / f"a{suffix}")
    assert np.array_equal(frame.image_HWC, RGB)
    assert np.array_equal(frame.alpha_HW, ALPHA)


@pytest.mark.parametrize("form", ["ya8", "ya16le"])
def test_gray_jpeg_2000_with_transparency(tmp_path, form):
    data = encoded("jpeg2000", form, np.dstack([GRAY, GRAY, GRAY, ALPHA]))
    (tmp_path / "a.jp2").write_bytes(data)
    frame = read_picture(tmp_path / "a.jp2")
    assert np.abs(frame.image_HWC.astype(int) - GRAY[..., None]).max() <= 12
    assert np.abs(frame.alpha_HW.astype(int) - ALPHA).max() <= 12


MASKS = struct.pack("<III", 0xFF0000, 0xFF00, 0xFF)


@pytest.mark.parametrize(
    ("size", "form", "masks", "fourth", "alpha"),
    [
        (40, 0, b"", 0, None),
        (40, 3, MASKS, 0, None),
        (40, 3, MASKS, 90, None),
        (108, 3, MASKS + bytes(4), 90, None),
        (108, 3, MASKS + struct.pack("<I", 0xFF000000), 90, 90),
        (124, 3, MASKS + struct.pack("<I", 0xFF000000), 0, None),
    ],
)
def test_the_fourth_byte_of_a_bitmap(tmp_path, size, form, masks, fourth, alpha):
    pixels = np.full((4, 6, 4), 100, np.uint8)
    pixels[..., 3] = fourth
    head = struct.pack("<IiiHHIIiiII", size, 6, -4, 1, 32, form, pixels.nbytes, 0, 0, 0, 0) + masks
    head = head.ljust(size, b"\0")
    at = 14 + len(head)
    data = b"BM" + struct.pack("<IHHI", at + pixels.nbytes, 0, 0, at) + head + pixels.tobytes()
    (tmp_path / "a.bmp").write_bytes(data)
    frame = read_picture(tmp_path / "a.bmp")
    assert frame.image_HWC.min() == frame.image_HWC.max() == 100
    assert (None if frame.alpha_HW is None else frame.alpha_HW.max()) == alpha


def test_jpeg_2000_of_sixteen_bits_and_of_gray(tmp_path):
    for pixels in (RGB[..., ::-1].astype(np.uint16) * 257, GRAY.astype(np.uint16) * 257, GRAY):
        options = [cv2.IMWRITE_JPEG2000_COMPRESSION_X1000, 1000]
        (tmp_path / "a.jp2").write_bytes(cv2.imencode(".jp2", pixels, options)[1].tobytes())
        wanted = RGB if pixels.ndim == 3 else np.repeat(GRAY[..., None], 3, 2)
        assert np.abs(read_picture(tmp_path / "a.jp2").image_HWC.astype(int) - wanted).max() <= 1


@pytest.mark.parametrize("bits", [1, 8, 9, 12, 16])
def test_bits_of_jpeg_2000(bits):
    head = b"\xff\x4f\xff\x51" + bytes(38) + bytes([bits - 1])
    assert stills._jpeg2000_bits(b"jp2 boxes" + head) == bits


@pytest.mark.parametrize(
    ("data", "wanted"),
    [
        (b"P5\n4 1\n15\n\0\5\x0a\x0f", [0, 85, 170, 255]),
        (b"P5\n# ten bits\n2 1\n1023\n\0\0\3\xff", [0, 255]),
        (b"P5 2 1 65535 \x80\x00\xff\xff", [128, 255]),
        (b"P2\n2 1\n100\n50 100\n", [128, 255]),
        (b"P1\n4 1\n0110\n", [255, 0, 0, 255]),
        (b"P4\n8 1\n\xf0", [0, 0, 0, 0, 255, 255, 255, 255]),
        (b"P7\nWIDTH 2\nHEIGHT 1\nDEPTH 1\nMAXVAL 1\nTUPLTYPE BLACKANDWHITE\nENDHDR\n\0\1", [0, 255]),
    ],
)
def test_netpbm_of_every_depth(tmp_path, data, wanted):
    (tmp_path / "a").write_bytes(data)
    frame = read_picture(tmp_path / "a")
    assert np.abs(frame.image_HWC[0, :, 1].astype(int) - wanted).max() <= 1


def test_pictures_in_a_row_give_the_first(tmp_path, monkeypatch):
    monkeypatch.setattr(stills, "_MOST_BYTES", 3 * RGB.nbytes)
    (tmp_path / "a.ppm").write_bytes(EXACT["a.ppm"]() * 5)
    assert media_of(tmp_path / "a.ppm") == "picture"
    assert np.array_equal(read_picture(tmp_path / "a.ppm").image_HWC, RGB)


@pytest.mark.parametrize(
    ("name", "codec", "form"),
    [("a.hdr", "hdr", "gbrpf32le"), ("a.exr", "exr", "gbrpf32le"), ("a.pfm", "pfm", "gbrpf32le")],
)
def test_linear_light_is_shown_as_srgb_and_said(tmp_path, name, codec, form):
    gray = np.full((16, 24, 3), 55, np.uint8)  # light of 0.2157, which sRGB shows as 128
    gray[:, 12:] = 255
    (tmp_path / name).write_bytes(encoded(codec, form, gray))
    with PictureFile(tmp_path / name) as picture:
        frame = picture.read()
    assert abs(int(frame.image_HWC[8, 4, 1]) - 128) <= 2
    assert frame.image_HWC[8, 20, 1] >= 253
    assert picture.notes == ["its samples are linear light; what is brighter than white is white"]


def icon(*sides):
    """An ICO whose pictures are PNG files of one shade each."""
    pngs = [cv2.imencode(".png", np.full((side, side, 4), side, np.uint8))[1].tobytes() for side in sides]
    at, directory = 6 + 16 * len(pngs), b""
    for side, png in zip(sides, pngs, strict=True):
        directory += struct.pack("<BBBBHHII", side, side, 0, 0, 1, 32, len(png), at)
        at += len(png)
    return struct.pack("<HHH", 0, 1, len(pngs)) + directory + b"".join(pngs)


def test_an_icon_that_begins_with_its_largest_picture(tmp_path):
    data = bytearray(icon(16, 32))
    data[6:8] = bytes(2)  # 256 is written as 0
    assert picture_format(bytes(data)).name == "ICO"


def test_icons_give_the_largest_or_the_asked_picture(tmp_path):
    path = tmp_path / "a.ico"
    path.write_bytes(icon(16, 48, 32))
    assert media_of(path) == "picture"
    assert read_picture(path).image_HWC[0, 0, 0] == 48
    for number, side in ((1, 16), (2, 48), (3, 32)):
        with PictureFile(path, page=number) as picture:
            frame = picture.read()
        assert frame.image_HWC.shape == (side, side, 3)
        assert frame.alpha_HW.max() == side
    with pytest.raises(MediaError, match="has 3 pages; there is no page 4"):
        PictureFile(path, page=4)


@pytest.mark.parametrize("name", ["a.png", "a.bmp", "a.ppm", "a.jpg"])
def test_a_page_that_is_not_there_is_one_line(tmp_path, name):
    (tmp_path / name).write_bytes(cv2.imencode(name[1:], RGB[..., ::-1])[1].tobytes())
    with PictureFile(tmp_path / name, page=1) as picture:
        assert picture.read().image_HWC.shape == RGB.shape
    with pytest.raises(MediaError, match=rf"{name}: has 1 page; there is no page 2"):
        PictureFile(tmp_path / name, page=2)


def test_pages_of_heif(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    for suffix, form in ((".heic", "HEVC"), (".avif", "AV1")):
        pages = heif.HeifFile()
        for shade in (40, 120, 200):
            pages.add_frombytes("RGB", (64, 48), np.full((48, 64, 3), shade, np.uint8).tobytes())
        path = tmp_path / f"a{suffix}"
        options = {"format": form} if form == "AV1" else {}
        try:
            pages.save(path, quality=-1, **options)
        except (RuntimeError, ValueError, KeyError):
            continue  # this build does not write it
        for number, shade in ((1, 40), (2, 120), (3, 200)):
            with PictureFile(path, page=number) as picture:
                assert abs(int(picture.read().image_HWC[20, 20, 0]) - shade) <= 1
        with pytest.raises(MediaError, match="has 3 pages; there is no page 4"):
            PictureFile(path, page=4)


@pytest.mark.parametrize("name", [name for name in EXACT if name != "a.jp2"])
def test_cut_short_is_one_line_or_what_is_there(tmp_path, name):
    data = EXACT[name]()
    (tmp_path / name).write_bytes(data[: len(data) // 2])
    told, shape = "", None
    try:
        shape = read_picture(tmp_path / name).image_HWC.shape
    except MediaError as error:
        told = str(error)
    # formats by run lengths fill up what is missing
    assert shape == RGB.shape or told.startswith(f"{tmp_path / name}: cannot be read: ")
    assert "\n" not in told


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.qoi", b"qoif" + struct.pack(">II", 60000, 60000) + b"\3\0" + bytes(40)),
        ("a.ppm", b"P6\n60000 60000\n255\n" + bytes(40)),
        ("a.tga", bytes([0, 0, 2, *bytes(9), 0x60, 0xEA, 0x60, 0xEA, 24, 0]) + bytes(40)),
        ("a.pam", b"P7\nWIDTH 60000\nHEIGHT 60000\nDEPTH 3\nMAXVAL 255\nENDHDR\n"),
    ],
)
def test_bombs_are_refused_from_the_header(tmp_path, name, data):
    (tmp_path / name).write_bytes(data)
    with pytest.raises(MediaError, match=r"60000x60000 is 3600 megapixels, above the limit of 64 \(--max-pixels\)"):
        PictureFile(tmp_path / name)


def test_an_asked_limit_holds_where_the_header_does_not_say(tmp_path):
    (tmp_path / "a.exr").write_bytes(encoded("exr", "gbrpf32le"))
    with pytest.raises(MediaError, match="OpenEXR is damaged, or above --max-pixels"):
        PictureFile(tmp_path / "a.exr", max_pixels=100)


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (b"%PDF-1.7\n", "PDF"),
        (b'<?xml version="1.0"?>\n<svg xmlns="http://www.w3.org/2000/svg"/>', "SVG"),
        (b"%!PS-Adobe-3.0 EPSF-3.0\n", "PostScript"),
        (b"gimp xcf v011", "GIMP XCF"),
        (b"\0\0\0\x18ftypcrx \0\0\0\1crx isom", "Canon CR3 raw"),
        (b"FUJIFILMCCD-RAW 0201", "Fujifilm raw"),
        (b"icns\0\0\0\x10", "Apple icon"),
        (bytes(128) + b"DICM", "DICOM"),
        (b"SIMPLE  =                    T", "FITS"),
    ],
)
@pytest.mark.parametrize("suffix", ["", ".jpg", ".dat"])
def test_what_no_library_reads_is_named(tmp_path, data, told, suffix):
    path = tmp_path / f"a{suffix}"
    path.write_bytes(data + bytes(300))
    assert media_of(path) == "picture"
    with pytest.raises(MediaError, match=f"is {told}, which no installed library reads; convert it to PNG or JPEG"):
        PictureFile(path)


def test_jpeg_xl_is_read_or_named(tmp_path):
    (tmp_path / "a.jxl").write_bytes(b"\xff\x0a" + bytes(40))
    with pytest.raises(MediaError, match=r"a\.jxl: (is JPEG XL, which this build|cannot be read: )"):
        PictureFile(tmp_path / "a.jxl")


def test_videos_are_no_pictures_whatever_their_name(tmp_path, write_video):
    data = write_video(tmp_path / "a.mp4", [np.full((32, 48, 3), 90, np.uint8)] * 3).read_bytes()
    for name in ("a.gif", "a.jpg", "a.dat", "a"):
        (tmp_path / name).write_bytes(data)
        assert media_of(tmp_path / name) == "video"


@pytest.mark.parametrize("head", [b"", b"\0" * 4096, b"hello", b"BM is no bitmap", b"P6 is no picture either", b"P"])
def test_what_is_neither(head):
    assert picture_format(head) is None
    assert not is_video_head(head)


def test_a_picture_that_only_ffmpeg_calls_a_video(tmp_path):
    (tmp_path / "a.pix").write_bytes(encoded("alias_pix", "bgr24"))
    assert media_of(tmp_path / "a.pix") == "picture"
    with pytest.raises(MediaError, match="unsupported image format"):
        PictureFile(tmp_path / "a.pix")


def with_segments(jpeg, *segments):
    """A JPEG with further segments after its first marker."""
    return (
        jpeg[:2] + b"".join(struct.pack(">BBH", 0xFF, mark, len(data) + 2) + data for mark, data in segments) + jpeg[2:]
    )


XMP = b"<x:xmpmeta xmlns:x='adobe:ns:meta/'><rdf:RDF/></x:xmpmeta>"
GAIN_MAP = (
    b"http://ns.adobe.com/xap/1.0/\0"
    b"<x:xmpmeta xmlns:hdrgm='http://ns.adobe.com/hdr-gain-map/1.0/' hdrgm:Version='1.0'/>"
)
IPTC = b"Photoshop 3.0\x008BIM\x04\x04\0\0\0\0\0\x0a\x1c\x02\x78\0\5Hello\0"[:38]


@pytest.mark.parametrize(
    "further", [(), ((0xE2, b"MPF\0" + bytes(80)),), ((0xE2, b"urn:iso:std:iso:ts:21496:-1\0" + bytes(20)),)]
)
def test_a_gain_map_takes_neither_xmp_nor_iptc_away(tmp_path, further):
    photo = cv2.imencode(".jpg", RGB[..., ::-1])[1].tobytes()
    xmp = b"http://ns.adobe.com/xap/1.0/\0" + XMP
    data = with_segments(photo, (0xE1, xmp), (0xED, IPTC), *further)
    gain = with_segments(cv2.imencode(".jpg", GRAY)[1].tobytes(), (0xE1, GAIN_MAP))
    (tmp_path / "a.jpg").write_bytes(data + gain)
    with PictureFile(tmp_path / "a.jpg") as picture:
        metadata = picture.read().metadata
    assert metadata.xmp == XMP
    assert metadata.iptc is not None


@pytest.mark.parametrize(("curve", "told"), [(16, "PQ"), (18, "HLG"), (13, None)])
def test_hdr_is_said(tmp_path, curve, told):
    png = cv2.imencode(".png", RGB[..., ::-1])[1].tobytes()
    chunk = b"cICP" + bytes([9, curve, 0, 1])
    made = png[:33] + struct.pack(">I", 4) + chunk + struct.pack(">I", zlib.crc32(chunk)) + png[33:]
    (tmp_path / "a.png").write_bytes(made)
    with PictureFile(tmp_path / "a.png") as picture:
        picture.read()
    wanted = [] if told is None else [f"is HDR ({told}); masks are found on its samples as they are stored"]
    assert picture.notes == wanted


@pytest.mark.parametrize(("curve", "told"), [(16, "PQ"), (18, "HLG"), (13, None)])
def test_hdr_of_avif_is_said(tmp_path, curve, told):
    vips = vips_module()
    whole = vips.Image.new_from_memory(RGB.data, RGB.shape[1], RGB.shape[0], 3, "uchar").copy(interpretation="srgb")
    data = bytearray(whole.heifsave_buffer(compression="av1", lossless=True))
    at = data.find(b"colrnclx")
    assert at > 0
    data[at + 10 : at + 12] = struct.pack(">H", curve)
    (tmp_path / "a.avif").write_bytes(data)
    with PictureFile(tmp_path / "a.avif") as picture:
        picture.read()
    assert [("HDR" in note, told in note) for note in picture.notes] == ([] if told is None else [(True, True)])


def test_hdr_of_heic_is_said(tmp_path):
    heif = pytest.importorskip("pillow_heif")
    path = tmp_path / "a.heic"
    heif.encode("RGB", (64, 48), np.full((48, 64, 3), 90, np.uint8).tobytes(), str(path), quality=-1)
    data = bytearray(path.read_bytes())
    at = data.find(b"colrnclx")
    if at < 0:
        pytest.skip("this pillow-heif writes files without a color box")
    data[at + 10 : at + 12] = struct.pack(">H", 16)
    path.write_bytes(data)
    with PictureFile(path) as picture:
        picture.read()
    assert picture.notes == ["is HDR (PQ); masks are found on its samples as they are stored"]
