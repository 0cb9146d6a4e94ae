"""The twelve data sets as they are published, and as mirrors name their folders."""

import unicodedata
import zipfile
from dataclasses import replace
from pathlib import Path

import cv2
import numpy as np
import pytest

from basnet_torch.data.datasets import DataReport, find_pairs, load_pairs
from basnet_torch.data.folders import files_below
from basnet_torch.data.layouts import matched
from basnet_torch.data.masks import decode_mask
from basnet_torch.errors import DataError, UsageError
from tests.models import with_exif
from tests.torch.conftest import write_png

PUBLISHED = {
    "SOD": ("Images/{}.jpg", "GT/{}.png"),
    "DUT-OMRON": ("DUT-OMRON-image/{}.jpg", "pixelwiseGT-new-PNG/{}.png"),
    "MSRA10K": ("MSRA10K_Imgs_GT/Imgs/{}.jpg", "MSRA10K_Imgs_GT/Imgs/{}.png"),
    "PASCAL-S": ("datasets/imgs/pascal/{}.jpg", "datasets/masks/pascal/{}.png"),
    "HKU-IS": ("imgs/{}.png", "gt/{}.png"),
    "DUTS-TR": ("DUTS-TR/DUTS-TR-Image/{}.jpg", "DUTS-TR/DUTS-TR-Mask/{}.png"),
    "DUTS-TE": ("DUTS-TE-Image/{}.jpg", "DUTS-TE-Mask/{}.png"),
    "THUR15K": ("Butterfly/Src/{}.jpg", "Butterfly/Src/{}.png"),
    "ECSSD": ("images/{}.jpg", "ground_truth_mask/{}.png"),
    "Judd": ("Judd/Images/{}.jpg", "Judd/Masks/{}.png"),
    "SOC": ("TrainSet/Imgs/{}.jpg", "TrainSet/GT/{}.png"),
    "Oxford-IIIT Pet": ("images/{}.jpg", "annotations/trimaps/{}.png"),
    "SED2": ("SED2/img/{}.png", "SED2/gt/{}.png"),
}
MIRRORS = [
    ("images/{}.jpg", "masks/{}.png"),
    ("Image/{}.jpg", "Mask/{}.png"),
    ("im/{}.jpg", "gt/{}.png"),
    ("Original/{}.bmp", "GroundTruth/{}.bmp"),
    ("DUTS-TR-Image/{}.jpg", "DUTS-TR-Mask/{}_mask.png"),
    ("photos/{}.jpg", "photos GT/{}.png"),
    ("images/{}.jpg", "masks/{}.jpg.png"),
    ("images/{}.jpg", "masks/{}.mask.png"),
    ("{}.jpg", "{}.png"),
]


def names(layout, count=4):
    return [pattern.format(f"{i:04}") for pattern in layout for i in range(count)]


@pytest.mark.parametrize("layout", [*PUBLISHED.values(), *MIRRORS], ids=[*PUBLISHED, *(m[0] + m[1] for m in MIRRORS)])
def test_every_data_set_pairs(layout):
    found = matched(Path("set"), names(layout))
    assert found.pairs == tuple((f"{i:04}", layout[0].format(f"{i:04}"), layout[1].format(f"{i:04}")) for i in range(4))
    assert not found.without_mask
    assert not found.without_picture


def test_the_five_classes_of_thur15k_and_both_parts_of_duts():
    classes = [n for c in ("Butterfly", "Coffee") for n in names((f"{c}/Src/{{}}.jpg", f"{c}/Src/{{}}.png"))]
    found = matched(Path("set"), [*classes, "Coffee/Src/9.jpg"])
    assert len(found.pairs) == 8
    assert found.without_mask == ("Coffee/Src/9.jpg",)
    parts = names(("DUTS-TR-Image/{}.jpg", "DUTS-TR-Mask/{}.png")) + names(
        ("DUTS-TE-Image/{}.jpg", "DUTS-TE-Mask/{}.png")
    )
    for _, picture, mask in matched(Path("set"), parts).pairs:
        assert picture[:7] == mask[:7]


def test_missing_halves_are_refused_with_their_number_or_skipped(pair_folder):
    (pair_folder / "DUTS-TR-Mask/disc2.png").unlink()
    (pair_folder / "DUTS-TR-Image/disc4.png").unlink()
    with pytest.raises(DataError, match=r"1 pairs have no mask .* --on-bad-pair skip"):
        find_pairs([pair_folder])
    report = DataReport()
    assert [p.name for p in find_pairs([pair_folder], on_bad="skip", report=report)] == [
        "disc0",
        "disc1",
        "disc3",
        "disc5",
    ]
    assert (len(report.without_mask), len(report.without_picture)) == (1, 1)


def test_what_is_odd_is_counted_and_what_is_bad_is_skipped(pair_folder):
    masks = pair_folder / "DUTS-TR-Mask"
    (pair_folder / "DUTS-TR-Image/disc0.png").write_bytes(b"broken")
    write_png(masks / "disc1.png", np.zeros((9, 9), np.uint8))
    write_png(masks / "disc2.png", np.eye(72, dtype=np.uint8))
    write_png(masks / "disc3.png", np.full((72, 72, 3), 255, np.uint8))
    write_png(masks / "disc4.png", np.zeros((72, 72), np.uint8))
    report = DataReport()
    store = load_pairs(find_pairs([pair_folder]), 72, on_bad="skip", report=report)
    assert store.names == ("disc2", "disc3", "disc4", "disc5")
    assert (report.unreadable, report.unequal, report.zero_one) == (["disc0"], ["disc1"], ["disc2"])
    assert (report.in_color, report.empty) == (["disc3"], ["disc4"])
    assert store.masks[0].max() == 255
    assert report.counts()["unreadable"] == 1
    assert any(line.startswith("1 pairs that cannot be read, skipped (disc0)") for line in report.lines())
    with pytest.raises(DataError, match="disc0: 6 bytes"):
        load_pairs(find_pairs([pair_folder]), 72)


def test_all_bad_leaves_nothing_to_train_on(pair_folder):
    for path in (pair_folder / "DUTS-TR-Image").iterdir():
        path.write_bytes(b"")
    with pytest.raises(DataError, match="none were found"):
        load_pairs(find_pairs([pair_folder]), 32, on_bad="skip")


def test_sixteen_bit_masks_keep_their_object(pair_folder):
    truth = np.zeros((72, 72), np.uint16)
    truth[:36] = 65535
    write_png(pair_folder / "DUTS-TR-Mask/disc0.png", truth)
    store = load_pairs(find_pairs([pair_folder]), 72)
    assert (store.masks[0][:36].min(), store.masks[0][36:].max()) == (255, 0)


@pytest.mark.parametrize(
    ("folders", "chosen"),
    [
        (("DUTS-TR-Edge/{}.png", "DUTS-TR-Image/{}.jpg", "DUTS-TR-Mask/{}.png"), (1, 2)),
        (("body/{}.png", "image/{}.jpg", "mask/{}.png"), (1, 2)),
        (("Depth/{}.png", "GT/{}.png", "RGB/{}.jpg"), (2, 1)),
        (("views/{}.jpg", "detail/{}.png", "mask/{}.png"), (0, 2)),
        (("TrainSet/Imgs/{}.jpg", "TrainSet/Instance gt/{}.png", "TrainSet/gt/{}.png"), (0, 2)),
        (("Imgs/{}.jpg", "GT_edge/{}.png", "GT/{}.png"), (0, 2)),
        (("DUTS-TR-Image/{}.jpg", "DUTS-TR-Mask/{}.png", "DUTS-TR-Mask-Edge/{}.png"), (0, 1)),
        (("RGB_left/{}.jpg", "RGB_right/{}.jpg", "depth/{}.jpg", "GT/{}.png"), (0, 3)),
        (("RGB_left/{}.png", "RGB_right/{}.png", "edge/{}.jpg", "GT/{}.png"), (0, 3)),
        (("image/{}.jpg", "image_crop/{}.jpg", "mask/{}.png"), (0, 2)),
        (("trainimages/{}.jpg", "traindepth/{}.jpg", "trainmasks/{}.png"), (0, 2)),
        (("blurred_image/{}.jpg", "original_image/{}.jpg", "mask/{}.png"), (1, 2)),
    ],
)
def test_edges_depths_and_instances_are_neither_pictures_nor_masks(folders, chosen):
    found = matched(Path("set"), names(folders))
    picture, mask = (folders[place] for place in chosen)
    assert found.pairs == tuple((f"{i:04}", picture.format(f"{i:04}"), mask.format(f"{i:04}")) for i in range(4))


@pytest.mark.parametrize(
    ("folders", "told"),
    [
        (("a/{}.jpg", "b/{}.jpg", "mask/{}.png"), "a, b could each be the pictures"),
        (("imgs/{}.jpg", "mask_a/{}.png", "mask_b/{}.png"), "mask_a, mask_b could each be the masks of imgs"),
    ],
)
def test_what_cannot_be_told_apart_is_refused(folders, told):
    with pytest.raises(DataError, match=told):
        matched(Path("set"), names(folders))


def test_what_macos_leaves_beside_files_is_no_picture(pair_folder):
    (pair_folder / "DUTS-TR-Image/._disc0.png").write_bytes(b"no picture")
    (pair_folder / "__MACOSX/DUTS-TR-Mask").mkdir(parents=True)
    (pair_folder / "__MACOSX/DUTS-TR-Mask/disc0.png").write_bytes(b"no picture")
    assert len(load_pairs(find_pairs([pair_folder]), 32)) == 6


@pytest.mark.parametrize(("dtype", "peak"), [(np.uint8, 2), (np.uint8, 38), (np.uint16, 1), (np.uint16, 255)])
def test_faint_masks_are_stretched(pair_folder, dtype, peak):
    truth = np.zeros((72, 72), dtype)
    truth[:36] = peak
    write_png(pair_folder / "DUTS-TR-Mask/disc0.png", truth)
    report = DataReport()
    store = load_pairs(find_pairs([pair_folder]), 72, report=report)
    assert (store.masks[0][:36].min(), store.masks[0][36:].max()) == (255, 0)
    assert report.faint == (["disc0"] if 1 < peak < 128 else [])
    stored = (pair_folder / "DUTS-TR-Mask/disc0.png").read_bytes()
    assert np.array_equal(decode_mask(stored, "disc0").mask_HW, store.masks[0])


def test_an_object_in_transparency_alone_is_refused(pair_folder):
    clear = np.zeros((72, 72, 4), np.uint8)
    clear[:36, :, 3] = 255
    write_png(pair_folder / "DUTS-TR-Mask/disc0.png", clear)
    with pytest.raises(DataError, match="disc0: its mask has the object in its transparency alone"):
        load_pairs(find_pairs([pair_folder]), 72)


def test_masks_are_turned_as_their_pictures_are(tmp_path):
    left = np.zeros((48, 64), np.uint8)
    left[:, :32] = 255
    for folder in ("images", "masks"):
        (tmp_path / folder).mkdir()
        (tmp_path / folder / "a.jpg").write_bytes(with_exif(cv2.imencode(".jpg", left)[1].tobytes(), 3))
    store = load_pairs(find_pairs([tmp_path]), 32)
    assert store.images[0, :, 20:].min() > 200
    assert store.masks[0, :, 20:].min() > 200
    assert store.masks[0, :, :12].max() < 50


def test_masks_in_several_folders_are_taken_together_where_each_picture_has_one():
    files = [f"images/{i}.jpg" for i in range(4)] + ["masks_train/0.png", "masks_train/1.png", "masks_test/2.png"]
    found = matched(Path("set"), [*files, "masks_more/9.png"])
    assert [mask for _, _, mask in found.pairs] == ["masks_train/0.png", "masks_train/1.png", "masks_test/2.png"]
    assert (found.without_mask, found.without_picture) == (("images/3.jpg",), ("masks_more/9.png",))


def test_of_masks_of_the_same_pictures_those_of_most_are_taken():
    files = [f"{folder}/{i}.{end}" for folder, end in (("images", "jpg"), ("masks_all", "png")) for i in range(4)]
    found = matched(Path("set"), [*files, "masks/0.png"])
    assert [mask for _, _, mask in found.pairs] == [f"masks_all/{i}.png" for i in range(4)]


def test_what_pairs_nowhere_is_not_asked_about(pair_folder):
    files = [*names(("DUTS/image/{}.jpg", "DUTS/mask/{}.png")), "DUTS/gt/x.png", "DUTS/one/y.png", "DUTS/two/z.png"]
    assert len(matched(Path("set"), files).pairs) == 4


def test_soft_masks_stay_as_they_are(pair_folder):
    truth = np.tile(np.linspace(0, 100, 72).astype(np.uint8), (72, 1))
    write_png(pair_folder / "DUTS-TR-Mask/disc0.png", truth)
    report = DataReport()
    store = load_pairs(find_pairs([pair_folder]), 72, report=report)
    assert np.array_equal(store.masks[0], truth)
    assert report.faint == ["disc0"]


@pytest.mark.parametrize("form", [("NFC", "NFD"), ("NFD", "NFC")])
def test_accents_are_compared_however_they_are_written(pair_folder, form):
    for folder, kind in zip(("DUTS-TR-Image", "DUTS-TR-Mask"), form, strict=True):
        name = unicodedata.normalize(kind, "n\u00e9")
        (pair_folder / folder / "disc0.png").rename(pair_folder / folder / f"{name}.png")
    pairs = find_pairs([pair_folder])
    assert "n\u00e9" in [pair.name for pair in pairs]
    assert len(load_pairs(pairs, 32)) == 6


def test_folders_of_accented_names_pair_however_these_are_written():
    files = [unicodedata.normalize("NFC", f"n\u00e9/images/{i}.jpg") for i in range(3)]
    files += [unicodedata.normalize("NFD", f"n\u00e9/masks/{i}.png") for i in range(3)]
    assert [pair[1:] for pair in matched(Path("set"), files).pairs] == list(zip(files[:3], files[3:], strict=True))


def test_both_files_are_named_where_a_pair_fails(pair_folder):
    write_png(pair_folder / "DUTS-TR-Mask/disc0.png", np.zeros((9, 9), np.uint8))
    with pytest.raises(DataError, match=r"they must be equal \(DUTS-TR-Image/disc0\.png and DUTS-TR-Mask/disc0\.png\)"):
        load_pairs(find_pairs([pair_folder]), 32)
    (pair_folder / "DUTS-TR-Mask/disc0.png").rename(pair_folder / "DUTS-TR-Mask/disk0.png")
    lacking = r"1 pairs have no mask \(DUTS-TR-Image/disc0\.png\), and 1 .* no picture \(DUTS-TR-Mask/disk0\.png\)"
    with pytest.raises(DataError, match=lacking):
        find_pairs([pair_folder])


def test_masks_of_other_names_are_told_so(tmp_path):
    files = ["images/a.jpg", "images/b.jpg", "masks/x.png"]
    with pytest.raises(DataError, match=r"no picture has the name of a mask \(images/a\.jpg, masks/x\.png\)"):
        matched(tmp_path, files)


@pytest.mark.parametrize("suffix", ["gif", "tif", "png"])
def test_masks_beside_their_pictures_may_be_of_any_lossless_kind(suffix):
    files = [f"Imgs/{i}.{end}" for i in range(3) for end in ("jpg", suffix)]
    assert [pair[2] for pair in matched(Path("set"), files).pairs] == [f"Imgs/{i}.{suffix}" for i in range(3)]


def test_zip_files_with_backslashes_are_read(pair_folder, tmp_path):
    with zipfile.ZipFile(tmp_path / "a.zip", "w") as archive:
        for path in sorted(pair_folder.rglob("*.png")):
            archive.writestr(str(path.relative_to(pair_folder)).replace("/", "\\"), path.read_bytes())
    assert len(load_pairs(find_pairs([tmp_path / "a.zip"]), 32)) == 6


def test_folders_that_are_links_are_entered_once_each(pair_folder, tmp_path):
    root = tmp_path / "links"
    root.mkdir()
    (root / "images").symlink_to(pair_folder / "DUTS-TR-Image")
    (root / "masks").symlink_to(pair_folder / "DUTS-TR-Mask")
    (root / "again").symlink_to(pair_folder / "DUTS-TR-Image")
    (pair_folder / "DUTS-TR-Image" / "cycle").symlink_to(root)
    assert len(find_pairs([root])) == 6
    (pair_folder / "alias").symlink_to(pair_folder / "DUTS-TR-Mask")
    found = files_below(pair_folder)
    assert len(found) == len(set(found)) == 12
    assert {path.parent.name for path in found} == {"DUTS-TR-Image", "DUTS-TR-Mask"}  # not under the links' names


def test_a_link_to_nothing_is_a_file_that_cannot_be_read(pair_folder):
    (pair_folder / "DUTS-TR-Mask/disc0.png").unlink()
    (pair_folder / "DUTS-TR-Mask/disc0.png").symlink_to(pair_folder / "absent.png")
    with pytest.raises(DataError, match="cannot be read"):
        load_pairs(find_pairs([pair_folder]), 32)
    assert len(load_pairs(find_pairs([pair_folder]), 32, on_bad="skip")) == 5


def test_an_unexpected_error_fails_its_pair_alone(pair_folder, tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_STATE_HOME", str(tmp_path / "state"))
    pairs = find_pairs([pair_folder])

    def explode():
        raise AttributeError("a defect")

    pairs[2] = replace(pairs[2], read_mask=explode)
    with pytest.raises(DataError, match=r"disc2\.png: unexpected: AttributeError: a defect; traceback in .*\.log"):
        load_pairs(pairs, 32)
    report = DataReport()
    assert len(load_pairs(pairs, 32, on_bad="skip", report=report)) == 5
    assert any("1 pairs that failed unexpectedly, skipped" in line and "a defect" in line for line in report.lines())
    log = next((tmp_path / "state").rglob("*.log")).read_text()
    assert "in explode" in log


def test_more_memory_than_there_is_is_one_line(pair_folder):
    with pytest.raises(UsageError, match="store_size is 10000000: 6 pairs take 2,400,000 GB"):
        load_pairs(find_pairs([pair_folder]), 10_000_000)
