"""A graph is optimized once by each library; what is kept gives the same masks and is never needed."""

import os
from pathlib import Path

import numpy as np
import pytest

from basnet_runtime.backends import cache as graph_cache
from basnet_runtime.backends import onnxruntime
from basnet_runtime.backends.cache import can_keep_optimized_models, optimized_model_path, remove_old_optimized_models
from basnet_runtime.backends.onnxruntime import open_onnxruntime
from basnet_torch.errors import ModelFileError
from basnet_torch.files import host_token
from tests.models import OPENERS, SIZE, exported


@pytest.fixture(scope="module")
def graph():
    return exported(precision="fp32", graph="tensor")  # whose own checks keep theirs elsewhere


@pytest.fixture
def cache(tmp_path, monkeypatch):
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    return tmp_path / "basnet-deploy" / "graphs"


def masks(path, opened=open_onnxruntime):
    batch = np.random.default_rng(0).standard_normal((2, 3, SIZE, SIZE)).astype(np.float32)
    with opened(path, threads=2) as backend:
        alone = backend.infer(batch)
        futures = [backend.submit(batch) for _ in range(3)]
        return [alone, *(future.result() for future in futures)]


@pytest.mark.parametrize("opened", OPENERS)
def test_the_second_start_reads_what_the_first_kept_and_gives_the_same_masks(opened, graph, cache, monkeypatch):
    first = masks(graph, opened)
    kept = {path: path.stat().st_ino for path in cache.iterdir()}
    assert kept
    second = masks(graph, opened)
    assert {path: path.stat().st_ino for path in cache.iterdir()} == kept
    for one, other in zip(first, second, strict=True):
        assert np.array_equal(one, other)
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)  # no folder can be made there
    for one, other in zip(first, masks(graph, opened), strict=True):
        assert np.array_equal(one, other)


def test_other_bytes_another_library_and_another_processor_are_other_graphs(tmp_path, monkeypatch):
    first, second = tmp_path / "a.onnx", tmp_path / "b.onnx"
    first.write_bytes(b"\x08\x07:\x00")  # an IR version and an empty graph
    second.write_bytes(b"\x08\x08:\x00")
    found = {
        optimized_model_path(first, by="x-1"),
        optimized_model_path(second, by="x-1"),
        optimized_model_path(first, by="x-2"),
    }
    monkeypatch.setattr(graph_cache, "processor_flags", lambda: frozenset({"none"}))
    assert len(found | {optimized_model_path(first, by="x-1")}) == 4


@pytest.mark.parametrize("length", [0, 1000, 50_000])
@pytest.mark.parametrize("opened", OPENERS)
def test_a_damaged_one_is_made_again(opened, length, graph, cache):
    expected = masks(graph, opened)
    for kept in cache.iterdir():
        kept.write_bytes(kept.read_bytes()[:length])
    assert np.array_equal(masks(graph, opened)[0], expected[0])
    assert np.array_equal(masks(graph, opened)[0], expected[0])
    assert all(path.stat().st_size > 50_000 for path in cache.iterdir())


@pytest.mark.parametrize("opened", OPENERS[:2])
def test_a_flipped_bit_is_noticed(opened, graph, cache):
    expected = masks(graph, opened)
    whole = {kept: kept.read_bytes() for kept in cache.iterdir()}
    for kept, content in whole.items():
        middle = len(content) // 2  # in the weights, where no library looks for damage
        kept.write_bytes(content[:middle] + bytes([content[middle] ^ 0x40]) + content[middle + 1 :])
    assert np.array_equal(masks(graph, opened)[0], expected[0])
    assert {kept: len(kept.read_bytes()) for kept in cache.iterdir()} == {k: len(c) for k, c in whole.items()}
    used = {kept: kept.stat().st_ino for kept in cache.iterdir()}
    assert np.array_equal(masks(graph, opened)[0], expected[0])
    assert {kept: kept.stat().st_ino for kept in cache.iterdir()} == used


def test_kept_weights_are_mapped_once_for_all_sessions(graph, cache):
    masks(graph)
    (weights,) = cache.glob("*.weights")
    batch = np.zeros((1, 3, SIZE, SIZE), np.float32)
    with open_onnxruntime(graph, threads=2) as backend:
        backend.submit(batch).result()  # by the second session
        maps = [line.split() for line in Path("/proc/self/maps").read_text().splitlines() if str(weights) in line]
    assert maps
    assert {inode for _, _, _, _, inode, _ in maps} == {str(weights.stat().st_ino)}


def test_weights_of_another_model_are_noticed(graph, cache):
    expected = masks(graph)
    (weights,) = cache.glob("*.weights")
    weights.write_bytes(bytes(weights.stat().st_size))
    assert np.array_equal(masks(graph)[0], expected[0])
    weights.unlink()
    assert np.array_equal(masks(graph)[0], expected[0])
    assert weights.exists()


def test_where_nothing_can_be_kept_a_graph_is_made_once(graph, cache, monkeypatch):
    made = []
    opened = onnxruntime._opened
    monkeypatch.setattr(onnxruntime, "_opened", lambda *given: made.append(given) or opened(*given))
    monkeypatch.setenv("XDG_CACHE_HOME", os.devnull)
    open_onnxruntime(graph, threads=2).close()
    assert len(made) == 1


def test_what_a_killed_process_was_writing_is_removed(graph, cache):
    left = cache / f"basnet-{host_token()}-killed"
    left.mkdir(parents=True)
    (left / "half.weights").write_bytes(bytes(1000))
    masks(graph)
    assert {path.suffix for path in cache.iterdir()} == {".onnx", ".weights"}


@pytest.mark.parametrize("opened", OPENERS[:2])
def test_what_is_kept_in_a_folder_without_writing_is_used(opened, graph, cache, monkeypatch):
    expected = masks(graph, opened)

    def refused(self, *_, **__):
        raise PermissionError(13, "Permission denied", str(self))

    kept = {path: path.stat().st_ino for path in cache.iterdir()}
    for name in ("touch", "unlink", "mkdir"):
        monkeypatch.setattr(Path, name, refused)
    monkeypatch.setattr(
        f"basnet_runtime.backends.{'onnxruntime' if opened is OPENERS[0] else 'openvino'}.atomic_write", refused
    )
    for one, other in zip(expected, masks(graph, opened), strict=True):
        assert np.array_equal(one, other)
    assert {path: path.stat().st_ino for path in cache.iterdir()} == kept


def test_a_file_that_is_no_graph_is_still_named_and_leaves_nothing(cache, tmp_path):
    path = tmp_path / "no.onnx"
    path.write_bytes(b"no graph")
    with pytest.raises(ModelFileError, match=r"no\.onnx: ONNX Runtime cannot read it"):
        open_onnxruntime(path)
    assert not cache.exists() or not list(cache.iterdir())


def test_those_used_last_stay(cache, monkeypatch):
    monkeypatch.setattr(graph_cache, "_MOST_BYTES", 500)
    cache.mkdir(parents=True)
    (cache / "basnet-0-writing").mkdir()
    os.utime(cache / "basnet-0-writing", (990, 990))
    for age in range(9):
        path = cache / f"{age}.onnx"
        path.write_bytes(bytes(100))
        os.utime(path, (1000 - age, 1000 - age))
    remove_old_optimized_models()
    assert {int(path.stem) for path in cache.glob("*.onnx")} == set(range(5))


def test_without_a_home_folder_nothing_is_kept_and_the_masks_are_the_same(graph, cache, monkeypatch):
    expected = masks(graph)
    monkeypatch.delenv("XDG_CACHE_HOME")
    monkeypatch.setattr(Path, "home", classmethod(no_home))
    assert not can_keep_optimized_models()
    for one, other in zip(expected, masks(graph), strict=True):
        assert np.array_equal(one, other)


def no_home(_):
    raise RuntimeError("Could not determine home directory.")
