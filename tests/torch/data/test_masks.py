"""Masks by their values: label maps are told from masks, and what they leave out counts nowhere."""

import io

import cv2
import numpy as np
import pytest
from PIL import Image

from basnet_torch.data.datasets import DataReport, find_pairs, load_pairs
from basnet_torch.data.masks import decode_mask, decode_picture
from basnet_torch.errors import BadPairError, DataError, MaskValuesError
from basnet_torch.spec import Postprocess, Preprocess
from basnet_torch.train.validate import Validator
from tests.runtime.media.image.tiff_files import page, tiff
from tests.torch.conftest import write_png

VOC = {0: (0, 0, 0), 1: (128, 0, 0), 2: (0, 128, 0), 15: (192, 128, 128), 20: (0, 64, 128), 255: (224, 224, 192)}


def stripes(values, dtype=np.uint8, side=24):
    """One stripe of each value."""
    return np.repeat(np.array(values, dtype), side)[:, None].repeat(32, 1)


def disc():
    return cv2.circle(np.zeros((120, 160), np.uint8), (80, 60), 40, 255, -1)


def png(array):
    return cv2.imencode(".png", array)[1].tobytes()


def saved(array, kind, palette=None, **options):
    image = Image.fromarray(array)
    if palette is not None:
        image = Image.new("P", array.shape[::-1])
        image.putdata(array.ravel().tolist())
        image.putpalette([channel for index in range(256) for channel in palette.get(index, (0, 0, 0))])
    content = io.BytesIO()
    image.save(content, kind, **options)
    return content.getvalue()


def colored(array):
    """The label map in VOC's colors, BGR."""
    found = np.zeros((*array.shape, 3), np.uint8)
    for index, color in VOC.items():
        found[array == index] = color[::-1]
    return found


LABELS = {
    "object and border": png(stripes([0, 1, 255])),
    "another value for the border": png(stripes([0, 1, 254])),
    "without a background": png(stripes([1, 255])),
    "classes": png(stripes([0, 1, 2, 15, 20])),
    "classes and border": png(stripes([0, 15, 255])),
    "two classes": png(stripes([1, 2])),
    "trimap of pets": png(stripes([1, 2, 3])),
    "scene classes": png(stripes([0, 4, 13, 87, 120])),
    "16 bits": png(stripes([0, 1, 65535], np.uint16)),
    "instances in 16 bits": png(stripes([0, 7, 26001, 26002], np.uint16)),
    "classes in 16 bits": png(stripes([0, 1000, 2000], np.uint16)),
    "VOC palette": saved(stripes([0, 1, 255]), "PNG", VOC),
    "VOC palette of 4 bits": saved(stripes([0, 1, 2, 15]), "PNG", VOC, bits=4),
    "VOC palette in TIFF": saved(stripes([0, 1, 255]), "TIFF", VOC),
    "VOC palette in GIF": saved(stripes([0, 1, 255]), "GIF", VOC),
    "colors": png(colored(stripes([0, 1, 15, 255]))),
    "gray in GIF": saved(stripes([0, 1, 255]), "GIF"),
}
MASKS = {
    "black and white": png(stripes([0, 255])),
    "0 and 1": png(stripes([0, 1])),
    "0 and 38": png(stripes([0, 38])),
    "all object": png(stripes([255])),
    "soft": png(np.tile(np.arange(256, dtype=np.uint8), (8, 1))),
    "softened": cv2.imencode(".png", cv2.GaussianBlur(stripes([0, 255]), (0, 0), 2))[1].tobytes(),
    "as JPEG leaves it": png(cv2.imdecode(cv2.imencode(".jpg", stripes([0, 255]))[1], 0)),
    "as WebP leaves it": cv2.imencode(".webp", disc(), [cv2.IMWRITE_WEBP_QUALITY, 70])[1].tobytes(),
    "rounded": png(stripes([0, 1, 254, 255])),
    "trimap": png(stripes([0, 128, 255])),
    "means of 12 people": png(stripes([0, 21, 64, 106, 255])),
    "means, rounded up": png(stripes([0, 22, 43, 255])),
    "16 bits": png(stripes([0, 65535], np.uint16)),
    "one color on black": png(colored(stripes([0, 1]))),
    "one color of a palette": saved(stripes([0, 1]), "PNG", VOC),
    "0 and 128": png(stripes([0, 128])),
    "a light color of a palette": saved(stripes([0, 15]), "PNG", VOC),
    "GIF": saved(stripes([0, 255]), "GIF"),
    "bilevel TIFF": saved(stripes([0, 255]) > 0, "TIFF"),
    "bilevel TIFF by fax": saved(stripes([0, 255]) > 0, "TIFF", compression="group4"),
    "TIFF": saved(stripes([0, 255]), "TIFF", compression="tiff_lzw"),
    "float TIFF": saved(stripes([0, 1], np.float32), "TIFF"),
}


@pytest.mark.parametrize("kind", LABELS)
def test_label_maps_are_refused_with_the_option_that_reads_them(kind):
    with pytest.raises(MaskValuesError, match=r"^a: its mask is a label map .*--mask-values labels (reads it|where)"):
        decode_mask(LABELS[kind], "a")


@pytest.mark.parametrize("kind", MASKS)
def test_masks_are_no_label_maps(kind):
    truth = decode_mask(MASKS[kind], "a")
    assert truth.ignored_HW is None
    if kind not in ("soft", "softened", "rounded", "trimap") and not kind.startswith(("as ", "means")):
        assert set(np.unique(truth.mask_HW)) <= {0, 255}
        assert truth.mask_HW.max() == 255


@pytest.mark.parametrize(
    ("kind", "objects", "ignored"),
    [
        ("object and border", [0, 1, 0], [0, 0, 1]),
        ("classes", [0, 1, 1, 1, 1], [0, 0, 0, 0, 0]),
        ("16 bits", [0, 1, 0], [0, 0, 1]),
        ("instances in 16 bits", [0, 1, 1, 1], [0, 0, 0, 0]),
        ("VOC palette", [0, 1, 0], [0, 0, 1]),
        ("VOC palette of 4 bits", [0, 1, 1, 1], [0, 0, 0, 0]),
        ("VOC palette in TIFF", [0, 1, 0], [0, 0, 1]),
        ("VOC palette in GIF", [0, 1, 0], [0, 0, 1]),
        ("colors", [0, 1, 1, 0], [0, 0, 0, 1]),
        ("gray in GIF", [0, 1, 0], [0, 0, 1]),
    ],
)
def test_labels_are_read_where_they_are_asked_for(kind, objects, ignored):
    truth = decode_mask(LABELS[kind], "a", "labels")
    assert np.array_equal(truth.mask_HW, stripes(objects) * 255)
    found = np.zeros(truth.mask_HW.shape, bool) if truth.ignored_HW is None else truth.ignored_HW
    assert np.array_equal(found, stripes(ignored) > 0)
    assert truth.holds == {"object", *(["background"] if 0 in objects else [])}


def test_gray_takes_a_label_map_as_it_is():
    assert np.array_equal(decode_mask(LABELS["classes and border"], "a", "gray").mask_HW, stripes([0, 15, 255]))


def test_a_palette_of_one_color_hides_no_object():
    """PIL writes such files where numbers are put into a picture of mode P and no palette is set."""
    black = dict.fromkeys(range(256), (0, 0, 0))
    assert np.array_equal(decode_mask(saved(stripes([0, 1]), "PNG", black), "a").mask_HW, stripes([0, 255]))
    with pytest.raises(MaskValuesError, match="label map of the values 0, 1, 255"):
        decode_mask(saved(stripes([0, 1, 255]), "PNG", black), "a")


def test_what_is_no_label_map_is_not_read_as_one():
    with pytest.raises(MaskValuesError, match=r"holds 201, 202, 203, 204, \.\.\., 254, and labels are 0 to 200"):
        decode_mask(MASKS["soft"], "a", "labels")
    with pytest.raises(MaskValuesError, match="its mask holds 254, and labels"):
        decode_mask(LABELS["another value for the border"], "a", "labels")
    with pytest.raises(MaskValuesError, match="and labels are 0 to 200"):
        decode_mask(MASKS["rounded"], "a", "labels")
    with pytest.raises(BadPairError, match="leaves every pixel out") as caught:
        decode_mask(png(stripes([255])), "a", "labels")
    assert caught.value.kind == "ignored"


def test_trimaps_are_read_where_they_are_asked_for():
    for array in (stripes([1, 2, 3]), stripes([255, 0, 128])):
        truth = decode_mask(png(array), "a", "trimap")
        assert np.array_equal(truth.mask_HW, stripes([1, 0, 0]) * 255)
        assert np.array_equal(truth.ignored_HW, stripes([0, 0, 1]) > 0)
    assert decode_mask(png(stripes([2])), "a", "trimap").odd == ("empty",)
    with pytest.raises(MaskValuesError, match="--mask-values trimap reads it where 1 is object, 2 background"):
        decode_mask(LABELS["trimap of pets"], "a")
    with pytest.raises(MaskValuesError, match=r"holds 0, 1, 2, 15, 20, and trimaps 1, 2 and 3 \(object, background"):
        decode_mask(LABELS["classes"], "a", "trimap")
    with pytest.raises(BadPairError, match="leaves every pixel out"):
        decode_mask(png(stripes([3])), "a", "trimap")


@pytest.mark.parametrize("form", ["<", ">", "BigTIFF"])
def test_the_numbers_of_a_palette_in_both_forms_of_tiff(form):
    array, gray = stripes([0, 1, 2]), {1: (128, 128, 128), 2: (128, 128, 128)}  # two numbers of one color
    colormap = [0, *[32768] * 2, *[0] * 253] * 3
    if form == "BigTIFF":
        content = saved(array, "TIFF", gray, big_tiff=True)
    else:
        content = tiff(page(array, photometric=3, tags={320: (3, colormap)}), order=form)
    assert np.array_equal(decode_mask(content, "a", "labels").mask_HW, stripes([0, 1, 1]) * 255)
    with pytest.raises(MaskValuesError, match="holds 0, 1, 2, and trimaps"):
        decode_mask(content, "a", "trimap")


@pytest.mark.parametrize("order", "<>")
@pytest.mark.parametrize(
    ("number", "name"), [(50000, "Zstandard"), (34925, "LZMA"), (34887, "LERC"), (9999, "method 9999")]
)
@pytest.mark.parametrize("decode", [decode_mask, decode_picture])
def test_a_tiff_of_a_compression_that_is_not_read_says_which(number, name, decode, order):
    content = tiff(page(stripes([0, 255]), compression=number), order=order)
    with pytest.raises(BadPairError, match=f"a: is a TIFF compressed with {name}, which is not read; save it as PNG"):
        decode(content, "a")


@pytest.mark.parametrize("compression", ["tiff_lzw", "packbits", "tiff_adobe_deflate", "group4"])
@pytest.mark.parametrize("decode", [decode_mask, decode_picture])
def test_damaged_blocks_of_a_tiff_are_no_black_ones(compression, decode):
    array = np.random.default_rng(0).integers(0, 2, (96, 64)).astype(bool)
    content = saved(array if compression == "group4" else array * np.uint8(255), "TIFF", compression=compression)
    assert set(np.unique(decode_mask(content, "a").mask_HW)) == {0, 255}
    half = len(content) // 2
    damaged = content[:half] + np.random.default_rng(1).bytes(40) + content[half + 40 :]
    with pytest.raises(BadPairError, match="a: is a damaged TIFF; fetch it again"):
        decode(damaged, "a")


def test_formats_that_are_not_read_are_named_and_damage_is_called_so():
    with pytest.raises(BadPairError, match="a: is HEIC, which is not read; save it as PNG"):
        decode_picture(b"\0\0\0\x18ftypheic" + bytes(60), "a")
    with pytest.raises(BadPairError, match="a: is JPEG XL, which is not read"):
        decode_mask(b"\xff\x0a" + bytes(60), "a")
    with pytest.raises(BadPairError, match="a: 20 bytes that are no readable picture"):
        decode_mask(MASKS["TIFF"][:20], "a")


@pytest.mark.parametrize("array", [np.float32([[np.nan, 1]]), np.float32([[-1, 1]]), np.float32([[0, 3000]])])
def test_floats_of_another_range_are_refused(array):
    with pytest.raises(BadPairError, match="floats outside"):
        decode_mask(saved(array, "TIFF"), "a")


@pytest.fixture
def labeled(pair_folder):
    """The drawn pairs as label maps: discs of 1 in a border of 255."""
    for path in (pair_folder / "DUTS-TR-Mask").iterdir():
        disc = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        border = cv2.dilate(disc, np.ones((9, 9), np.uint8)) > disc
        write_png(path, np.where(border, 255, (disc > 0) * 1).astype(np.uint8))
    return pair_folder


def test_label_maps_end_training_also_where_bad_pairs_are_skipped(labeled):
    with pytest.raises(MaskValuesError, match=r"disc0: .* \(DUTS-TR-Mask/disc0\.png\)$"):
        load_pairs(find_pairs([labeled]), 36, on_bad="skip")
    with pytest.raises(MaskValuesError, match="disc0: its mask"):
        Validator(find_pairs([labeled]), Preprocess(height=32, width=32), Postprocess())


@pytest.mark.parametrize("size", [36, 72, 100])
def test_what_touches_a_left_out_pixel_is_left_out(labeled, size):
    report = DataReport()
    store = load_pairs(find_pairs([labeled]), size, values="labels", report=report)
    assert len(report.left_out) == 6
    assert any("6 label maps with pixels that are left out" in line for line in report.lines())
    assert store.truths.shape == (6, size, size, 2)
    counted = store.ignored == 0
    assert set(np.unique(store.masks[counted])) == {0, 255}  # no value is a mixture with what is left out
    assert 0.3 < counted.mean() < 0.99


def test_label_maps_without_a_background_are_refused(labeled):
    """As trimaps are, whose background is 2."""
    for path in (labeled / "DUTS-TR-Mask").iterdir():
        disc = cv2.imread(str(path), cv2.IMREAD_GRAYSCALE)
        write_png(path, np.choose(np.searchsorted([0, 1, 255], disc), [2, 1, 3]).astype(np.uint8))
    pairs = find_pairs([labeled])
    with pytest.raises(MaskValuesError, match=r"no mask holds a 0, .* --mask-values trimap"):
        load_pairs(pairs, 32, values="labels")
    with pytest.raises(MaskValuesError, match="validation: no mask holds a 0"):
        Validator(pairs, Preprocess(height=32, width=32), Postprocess(), values="labels")
    report = DataReport()
    store = load_pairs(pairs, 32, values="trimap", report=report)
    assert len(report.left_out) == 6
    assert set(np.unique(store.masks[store.ignored == 0])) == {0, 255}
    assert 0.3 < (store.masks[store.ignored == 0] == 0).mean() < 1


def test_masks_without_labels_are_not_read_as_label_maps(pair_folder):
    with pytest.raises(MaskValuesError, match="no mask holds a label besides 0 and 255"):
        load_pairs(find_pairs([pair_folder]), 32, values="labels")
    with pytest.raises(DataError, match="no mask holds a label"):
        Validator(find_pairs([pair_folder]), Preprocess(height=32, width=32), Postprocess(), values="labels")
