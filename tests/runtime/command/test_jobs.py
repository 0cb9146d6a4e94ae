"""Planning: what is expanded, where results go, and what is refused before any work."""

from __future__ import annotations

import os

import pytest

from basnet_runtime.command.jobs import plan_jobs, without_finished
from basnet_runtime.kinds import OutputKind
from basnet_torch.errors import MediaError, UsageError


@pytest.fixture
def tree(tmp_path, monkeypatch):
    root = tmp_path / "in"
    for name in (
        "a.jpg",
        "b.PNG",
        "notes.txt",
        "clip.mov",
        ".hidden.jpg",
        "sub/a.jpg",
        "sub/deep/c.webp",
        "empty/x.txt",
    ):
        path = root / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(b"x")
    monkeypatch.chdir(tmp_path)
    return root


def suffix_of(_, media):
    return {"picture": ".png", "animation": ".webp", "video": ".mp4"}[media]


def planned(*inputs, kind="mask", overwrite=False, skip_existing=False, **options):
    inputs = [str(i) for i in inputs]
    plan = plan_jobs(inputs, kind=OutputKind.parse(kind), suffix_of=suffix_of, **options)
    return without_finished(plan, overwrite=overwrite, skip_existing=skip_existing)


def targets(plan):
    return sorted(os.path.relpath(job.target) for job in plan.jobs)


def test_folder_beside(tree):
    assert targets(planned(tree)) == ["in/a.mask.png", "in/b.mask.png", "in/clip.mask.mp4"]
    assert [job.media for job in planned(tree).jobs] == ["picture", "picture", "video"]


def test_the_tree_is_mirrored(tree):
    plan = planned(tree, recursive=True, output="out", kind="color:#000000")
    assert targets(plan) == [
        "out/a.color.png",
        "out/b.color.png",
        "out/clip.color.mp4",
        "out/sub/a.color.png",
        "out/sub/deep/c.color.png",
    ]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/*.jpg", ["out/a.mask.png"]),
        ("in/**/*.jpg", ["out/a.mask.png", "out/sub/a.mask.png"]),
        ("in/*", ["out/a.mask.png", "out/b.mask.png", "out/clip.mask.mp4"]),
        ("in/s*/*.jpg", ["out/sub/a.mask.png"]),
    ],
)
def test_globs(tree, pattern, expected):
    assert targets(planned(pattern, output="out")) == expected


def test_a_file_named_like_a_pattern_is_a_file(tree):
    (tree / "a[1].jpg").write_bytes(b"x")
    assert targets(planned("in/a[1].jpg")) == ["in/a[1].mask.png"]


def test_single_output_file_or_folder(tree):
    assert targets(planned("in/a.jpg", output="x/y.webp")) == ["x/y.webp"]
    assert targets(planned("in/a.jpg", output="x/y.webp/")) == ["x/y.webp/a.mask.png"]
    assert targets(planned("in/a.jpg", output="x")) == ["x/a.mask.png"]
    with pytest.raises(UsageError, match="is one file, but there are 2 inputs"):
        planned("in/a.jpg", "in/b.PNG", output="y.png")
    with pytest.raises(UsageError, match="is one file"):
        planned("in", output="y.png")


def test_collisions_are_refused(tree):
    (tree / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match=r"in/a\.jpg and .*in/a\.png would both become"):
        planned("in")
    with pytest.raises(UsageError, match="would both become"):
        planned("in/a.jpg", "in/sub/a.jpg", output="out")


def test_whole_names_keep_files_apart_that_differ_in_their_suffix(tree):
    (tree / "a.png").write_bytes(b"x")
    with pytest.raises(UsageError, match="add --keep-suffix"):
        planned("in")
    assert {"in/a.jpg.mask.png", "in/a.png.mask.png"} <= set(targets(planned("in", keep_suffix=True)))


def test_the_same_file_twice_is_one(tree):
    assert targets(planned("in/a.jpg", "in/a.jpg", "in/*.jpg")) == ["in/a.mask.png"]


def test_existing_outputs(tree):
    (tree / "a.mask.png").write_bytes(b"old")
    with pytest.raises(UsageError, match=r"already there: in/a\.mask\.png; --overwrite replaces, --skip-existing"):
        planned("in")
    assert len(planned("in", overwrite=True).jobs) == 3
    plan = planned("in", skip_existing=True)
    assert targets(plan) == ["in/b.mask.png", "in/clip.mask.mp4"]
    assert any("1 inputs have their output already" in note for note in plan.notes)


def test_inputs_are_never_written_over(tree):
    with pytest.raises(UsageError, match="is an input; it is never written over"):
        planned("in/a.jpg", output="in/a.jpg", overwrite=True)
    (tree / "link.png").symlink_to("a.jpg")
    with pytest.raises(UsageError, match="is an input"):
        planned("in/a.jpg", output="in/link.png", overwrite=True)


def test_results_of_earlier_runs_are_left_out(tree):
    (tree / "b.cutout.png").write_bytes(b"x")
    plan = planned("in")
    assert len(plan.jobs) == 3
    assert plan.notes[0] == "1 files look like results of an earlier run and are left out"
    assert targets(planned("in/b.cutout.png")) == ["in/b.cutout.mask.png"]


@pytest.mark.parametrize("name", ["pipe.jpg", "pipe.mp4", "pipe"])
def test_pipes_are_refused_and_never_opened(tree, name):
    os.mkfifo(tree / name)
    plan = planned(f"in/{name}", "in/a.jpg")
    assert [job.source.name for job in plan.jobs] == ["a.jpg"]
    assert [failure.error for failure in plan.failures] == [f"in/{name}: is a pipe, device or socket; give a file"]
    for found in (planned("in"), planned("in/*")):
        assert sorted(job.source.name for job in found.jobs) == ["a.jpg", "b.PNG", "clip.mov"]
        assert not found.failures


def test_missing_inputs_fail_alone(tree):
    plan = planned("in/a.jpg", "in/none.jpg", "in/*.xyz", "in/empty")
    assert len(plan.jobs) == 1
    assert [failure.error for failure in plan.failures] == [
        "in/none.jpg: no such file",
        "in/*.xyz: no such file (nothing matches the pattern)",
        "in/empty: no pictures or video in this folder; --recursive looks below it",
    ]


def test_a_video_without_container_fails_alone(tree):
    def refuse(path, media):
        if media == "video":
            raise MediaError(f"{path}: no container")
        return ".png"

    plan = plan_jobs(["in"], kind=OutputKind(), suffix_of=refuse)
    assert len(plan.jobs) == 2
    assert plan.failures[0].error.endswith("clip.mov: no container")


def test_what_a_folder_leaves_out_is_counted_by_suffix(tree):
    (tree / "sub" / "more.TXT").write_bytes(b"x")
    (tree / "sub" / "README").write_bytes(b"x")
    os.mkfifo(tree / "sub" / "pipe.jpg")
    plan = planned("in", recursive=True)
    assert plan.left_out == {".txt": 3, "": 1, ".jpg": 1}
    assert plan.notes == ("5 files are no pictures or video and left out, by suffix: 3 .txt, 1 without suffix, 1 .jpg",)
    (tree / "tale.f4v").write_bytes(b"x")
    assert ".f4v" not in planned("in").left_out
    assert planned("in/*").left_out == {".txt": 1}
    assert planned("in/a.jpg").left_out == {}
    assert planned("in", "in/*", recursive=True).left_out == {".txt": 3, "": 1, ".jpg": 1}


def test_pictures_of_rare_formats_are_found_in_folders(tree):
    for suffix in ("ppm", "tga", "qoi", "hdr", "ico", "pcx", "bmp", "PGM"):
        (tree / f"x-{suffix}.{suffix}").write_bytes(b"x")
    plan = planned("in")
    assert len(plan.jobs) == 3 + 8
    assert {job.media for job in plan.jobs} == {"picture", "video"}


@pytest.fixture
def linked(tree):
    """A tree with links to a folder outside, to one inside, to the tree itself and in a circle."""
    outside = tree.parent / "outside"
    (outside / "deep").mkdir(parents=True)
    (outside / "o.jpg").write_bytes(b"x")
    (outside / "deep" / "p.jpg").write_bytes(b"x")
    (tree / "a-link").symlink_to(outside)
    (tree / "b-link").symlink_to(outside)
    (tree / "again").symlink_to("sub")
    (tree / "sub" / "up").symlink_to("..")
    (tree / "sub" / "self").symlink_to(".")
    (outside / "back").symlink_to(tree)
    (tree / "broken").symlink_to("nowhere")
    return tree


def test_linked_folders_are_entered_once_each(linked):
    assert targets(planned("in", recursive=True, output="out")) == [
        "out/a-link/deep/p.mask.png",
        "out/a-link/o.mask.png",
        "out/a.mask.png",
        "out/b.mask.png",
        "out/clip.mask.mp4",
        "out/sub/a.mask.png",
        "out/sub/deep/c.mask.png",
    ]
    assert targets(planned("in")) == ["in/a.mask.png", "in/b.mask.png", "in/clip.mask.mp4"]


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/**/*.jpg", ["a-link/deep/p", "a-link/o", "a", "sub/a"]),
        ("in/*/*.jpg", ["a-link/o", "sub/a"]),
        ("in/**/**/*.jpg", ["a-link/deep/p", "a-link/o", "a", "sub/a"]),
        ("in/[ab]*/*.jpg", ["a-link/o", "again/a"]),
        ("in/**", ["a-link/deep/p", "a-link/o", "a", "b", "sub/a", "sub/deep/c"]),
    ],
)
def test_linked_folders_in_patterns(linked, pattern, expected):
    names = [name for name in targets(planned(pattern, output="out")) if name.endswith(".png")]
    assert names == sorted(f"out/{name}.mask.png" for name in expected)


def test_a_folder_and_a_link_to_it_as_inputs(tree):
    (tree.parent / "same").symlink_to(tree)
    once = ["out/a.mask.png", "out/b.mask.png", "out/clip.mask.mp4"]
    assert targets(planned("in", "same", output="out")) == once
    assert targets(planned("same", "in", output="out")) == once
    assert targets(planned("in", "same/*.jpg", output="out")) == once
    plan = planned("in/a.jpg", "same/b.PNG", output="out")
    assert targets(plan) == once[:2]


def test_a_folder_that_is_a_link_itself(linked):
    (linked.parent / "entry").symlink_to(linked / "sub")
    assert targets(planned("entry", output="out")) == ["out/a.mask.png"]
    assert "out/deep/c.mask.png" in targets(planned("entry", recursive=True, output="out"))


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("in/.h*", [".hidden.mask.png"]),
        ("in/*.jpg", ["a.mask.png"]),
        ("in/[!a].PNG", ["b.mask.png"]),
        ("in/?.jpg", ["a.mask.png"]),
        ("i[n]/sub/a.jpg", ["sub/a.mask.png", "in/sub/a.mask.png"]),
        ("in/sub/**/c.*", ["deep/c.mask.png"]),
        ("./in/*.jpg", ["a.mask.png"]),
    ],
)
def test_patterns_as_the_shell_knows_them(tree, pattern, expected):
    (name,) = targets(planned(pattern, output="out"))
    assert name.removeprefix("out/") in expected


def test_absolute_patterns(tree):
    assert targets(planned(f"{tree}/**/*.jpg", output="out")) == ["out/a.mask.png", "out/sub/a.mask.png"]
