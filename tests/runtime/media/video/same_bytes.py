"""One clip in every codec, for `test_bytes_do_not_depend_on_the_number_of_cpus`; run in a process of its own."""

from __future__ import annotations

from pathlib import Path

RESULTS = (
    ("h264.mp4", "overlay"),
    ("hevc.mp4", "overlay"),
    ("av1.mp4", "overlay"),
    ("vp9.webm", "overlay"),
    ("prores.mov", "overlay"),
    ("ffv1.mkv", "overlay"),
    ("prores.cutout.mov", "cutout"),
    ("vp9.cutout.webm", "cutout"),
)


def main(clip: str, folder: str) -> None:
    from tests.conftest import make_fake_model
    from tests.videos import made

    model = make_fake_model(32)
    for name, kind in RESULTS:
        made(model, Path(clip), Path(folder) / name, kind, codec=name.partition(".")[0])
