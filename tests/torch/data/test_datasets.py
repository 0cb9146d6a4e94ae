"""Pairs are found by layout, in folders and zips; what does not pair or decode is named."""

import shutil
import zipfile

import numpy as np
import pytest

from basnet_torch.data.datasets import find_pairs, load_pairs
from basnet_torch.data.masks import decode_mask
from basnet_torch.errors import DataError
from tests.torch.conftest import write_png


def zipped(folder, path):
    with zipfile.ZipFile(path, "w") as archive:
        for file in sorted(folder.rglob("*.png")):
            archive.write(file, file.relative_to(folder))
    return path


def test_folder_zip_and_folder_of_zips_give_the_same_pairs(pair_folder, tmp_path):
    (tmp_path / "shards").mkdir()
    archive = zipped(pair_folder, tmp_path / "shards" / "a.zip")
    stores = [load_pairs(find_pairs([source]), 48) for source in (pair_folder, archive, archive.parent)]
    assert len(stores[0]) == 6
    assert stores[0].size == 48
    for store in stores[1:]:
        assert store.names == stores[0].names
        np.testing.assert_array_equal(store.images, stores[0].images)
        np.testing.assert_array_equal(store.masks, stores[0].masks)


def test_pictures_are_rgb_and_masks_follow_them(pair_folder):
    store = load_pairs(find_pairs([pair_folder]), 72)
    for image, mask in zip(store.images, store.masks, strict=True):
        assert set(np.unique(mask)) == {0, 255}
        assert image[mask > 0].min() >= 150
        assert image[mask == 0].max() < 90


@pytest.mark.parametrize(("pictures", "masks"), [("images", "masks"), ("imgs", "gt"), ("Image", "Mask"), ("im", "gt")])
def test_names_that_mirrors_use(pair_folder, pictures, masks):
    (pair_folder / "DUTS-TR-Image").rename(pair_folder / pictures)
    (pair_folder / "DUTS-TR-Mask").rename(pair_folder / masks)
    assert len(find_pairs([pair_folder])) == 6


def test_unpaired_pictures_are_counted_and_named(pair_folder):
    (pair_folder / "DUTS-TR-Mask/disc2.png").unlink()
    with pytest.raises(DataError, match=r"1 pairs have no mask \(DUTS-TR-Image/disc2\.png\)"):
        find_pairs([pair_folder])


def test_every_layout_below_a_root_is_taken(pair_folder, tmp_path):
    """Folders of one name under different parents are different folders."""
    for part in ("a", "b"):
        (tmp_path / "all" / part).mkdir(parents=True)
        shutil.copytree(pair_folder / "DUTS-TR-Image", tmp_path / "all" / part / "images")
        shutil.copytree(pair_folder / "DUTS-TR-Mask", tmp_path / "all" / part / "masks")
    shutil.copytree(pair_folder, tmp_path / "all/duts")
    assert len(find_pairs([tmp_path / "all"])) == 18


def test_two_files_of_one_name_are_refused(pair_folder):
    shutil.copy(pair_folder / "DUTS-TR-Image/disc1.png", pair_folder / "DUTS-TR-Image/disc1.jpg")
    with pytest.raises(DataError, match="share a name"):
        find_pairs([pair_folder])


def test_a_damaged_zip_member_is_named(pair_folder, tmp_path):
    path = zipped(pair_folder, tmp_path / "a.zip")
    data = bytearray(path.read_bytes())
    data[200:400] = bytes(200)
    path.write_bytes(data)
    with pytest.raises(DataError, match=r"a\.zip: .*disc0\.png cannot be read"):
        load_pairs(find_pairs([path]), 32)


def test_unknown_layout_says_what_was_found(tmp_path):
    (tmp_path / "photos").mkdir()
    write_png(tmp_path / "photos/a.png", np.zeros((4, 4), np.uint8))
    with pytest.raises(DataError, match="found photos; pictures and masks must stand"):
        find_pairs([tmp_path])


def test_missing_source_and_broken_zip(tmp_path):
    with pytest.raises(DataError, match="no such file"):
        find_pairs([tmp_path / "absent"])
    (tmp_path / "a.zip").write_bytes(b"PK nothing")
    with pytest.raises(DataError, match="not a readable zip"):
        find_pairs([tmp_path / "a.zip"])


def test_unreadable_and_unequal_pictures_are_named(pair_folder):
    broken = pair_folder / "DUTS-TR-Image/disc1.png"
    broken.write_bytes(b"no picture")
    with pytest.raises(DataError, match="disc1: 10 bytes"):
        load_pairs(find_pairs([pair_folder]), 32)
    write_png(broken, np.zeros((9, 9, 3), np.uint8))
    with pytest.raises(DataError, match="disc1: picture is"):
        load_pairs(find_pairs([pair_folder]), 32)


def test_nothing_to_load():
    with pytest.raises(DataError, match="none were found"):
        load_pairs([], 32)


def test_masks_of_zeros_and_ones_are_read_as_black_and_white(tmp_path):
    write_png(tmp_path / "a.png", np.array([[0, 1]], np.uint8))
    assert decode_mask((tmp_path / "a.png").read_bytes(), "a").mask_HW.tolist() == [[0, 255]]
