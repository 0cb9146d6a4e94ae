"""Large pictures in strips: the same result as in memory, through every kind, and memory that does not follow them."""

from __future__ import annotations

import numpy as np
import pytest
import skimage.data

from basnet_runtime import postprocess
from basnet_runtime.command.jobs import Job
from basnet_runtime.command.picture_files import PictureSink, PictureSource
from basnet_runtime.kinds import OutputKind
from basnet_runtime.media.compose import large
from basnet_runtime.media.compose.compose import Composer
from basnet_runtime.media.compose.large import run_large
from basnet_runtime.media.image.pictures import PictureFile, read_picture, vips_module, write_picture
from basnet_runtime.pipeline.run import Pipeline
from basnet_runtime.postprocess import row_strips
from basnet_torch import spec


@pytest.fixture
def small(monkeypatch):
    """Pictures of a few thousand pixels go the way of those of hundreds of millions."""
    monkeypatch.setattr(spec, "_LARGE_PIXELS", 1000)
    monkeypatch.setattr(postprocess, "row_strips", lambda height, width: row_strips(height, width, 3000))
    monkeypatch.setattr(large, "_STRIP_PIXELS", 3000)


@pytest.fixture
def photo(tmp_path, write=write_picture):
    image = np.ascontiguousarray(skimage.data.coffee()[::2, ::2])
    alpha = np.full(image.shape[:2], 255, np.uint8)
    alpha[:40] = 90
    write(tmp_path / "plain.png", image)
    write(tmp_path / "alpha.png", image, alpha)
    turned = vips_module().Image.new_from_memory(
        np.rot90(image).copy().data, image.shape[0], image.shape[1], 3, "uchar"
    )
    turned = turned.copy(interpretation="srgb")
    turned.set_type(vips_module().GValue.gint_type, "orientation", 6)
    turned.write_to_file(str(tmp_path / "turned.tif"))
    return tmp_path


def both(folder, name, kind, model, **edges):
    composer = Composer(OutputKind.parse(kind), **edges)
    job = Job(source=folder / name, target=folder / "whole.png", media="picture")
    Pipeline(model, composer).run(PictureSource([job]), PictureSink([job], overwrite=False))
    with PictureFile(folder / name) as picture:
        run_large(
            picture,
            folder / "strips.png",
            model=model,
            postprocess=model.postprocessor(),
            composer=composer,
            overwrite=False,
        )
    return read_picture(folder / "whole.png"), read_picture(folder / "strips.png")


@pytest.mark.parametrize("name", ["plain.png", "alpha.png", "turned.tif"])
@pytest.mark.parametrize("kind", ["mask", "overlay", "side", "cutout", "color:#20c060", "blur", "image:plain.png"])
def test_strips_are_the_whole(photo, small, fake_model, name, kind, monkeypatch):
    monkeypatch.chdir(photo)
    whole, strips = both(photo, name, kind, fake_model)
    assert whole.image_HWC.shape == strips.image_HWC.shape
    difference = np.abs(whole.image_HWC.astype(int) - strips.image_HWC)
    if kind in ("mask", "overlay", "side"):
        assert difference.max() == 0
    else:  # what is estimated from a reduced copy is estimated here from a copy reduced in two steps
        assert difference.mean() < 0.5
        assert difference.max() < 40
    assert (whole.alpha_HW is None) == (strips.alpha_HW is None)
    if whole.alpha_HW is not None:
        assert (whole.alpha_HW == strips.alpha_HW).all()


@pytest.mark.parametrize("edges", [{"threshold": 0.5}, {"feather": 3.0}, {"threshold": 0.4, "feather": 5.0}])
def test_edges_do_not_show_the_strips(photo, small, fake_model, edges):
    whole, strips = both(photo, "plain.png", "mask", fake_model, **edges)
    assert (whole.image_HWC == strips.image_HWC).all()


def test_nothing_is_left_beside_the_result(photo, small, fake_model):
    both(photo, "plain.png", "cutout", fake_model)
    assert {path.name for path in photo.iterdir()} == {
        "plain.png",
        "alpha.png",
        "turned.tif",
        "whole.png",
        "strips.png",
    }


def test_the_source_puts_them_aside(photo, fake_model):
    jobs = [Job(source=photo / name, target=photo / "out.png", media="picture") for name in ("plain.png", "alpha.png")]
    source = PictureSource(jobs, put_aside=1000)
    sink = PictureSink(jobs, overwrite=False)
    Pipeline(fake_model, Composer(OutputKind())).run(source, sink)
    assert source.aside == jobs
    assert (sink.written, source.failures) == ({}, [])
