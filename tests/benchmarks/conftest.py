"""Width-2 networks whose masks are not flat, their exports, one of them damaged, and drawn pictures with truth."""

from dataclasses import replace
from types import SimpleNamespace

import cv2
import numpy as np
import onnx
import pytest
import torch

from basnet_export.config import ExportConfig
from basnet_export.onnx_export import export_onnx
from basnet_torch.checkpoint import Checkpoint, save_checkpoint
from basnet_torch.model.basnet import BASNet
from basnet_torch.spec import Postprocess, Preprocess
from tests.torch.conftest import draw_pairs, write_png

SIZE = 64


@pytest.fixture(scope="session")
def bench_models(tmp_path_factory):
    """`checkpoint`, its export `onnx`, `damaged` with one other weight, and `flat`, a checkpoint of flat masks."""
    folder = tmp_path_factory.getbasetemp() / "bench-models"
    names = {"checkpoint": "good.safetensors", "onnx": "good.onnx", "damaged": "damaged.onnx", "flat": "flat.pth"}
    models = SimpleNamespace(**{key: folder / name for key, name in names.items()})
    if not folder.exists():  # two test folders ask for it in one session
        folder.mkdir()
        _write(models)
    return models


def _write(models):
    good = _checkpoint(seed=0)
    save_checkpoint(models.checkpoint, good)
    export_onnx(ExportConfig(checkpoint=models.checkpoint, output=models.onnx, check=False))
    _damage(models.onnx, models.damaged)
    last = ("refine.output.weight", "predict.side_outputs.convs.stage1.weight")
    save_checkpoint(models.flat, replace(good, state={k: v * 0 if k in last else v for k, v in good.state.items()}))


def _damage(source, target):
    """One convolution's weights made half as large again; the manifest inside the file stays."""
    graph = onnx.load(source)
    by_name = {tensor.name: tensor for tensor in graph.graph.initializer}
    weights = by_name[next(node for node in graph.graph.node if node.op_type == "Conv").input[1]]
    weights.CopyFrom(onnx.numpy_helper.from_array(onnx.numpy_helper.to_array(weights) * np.float32(1.5), weights.name))
    onnx.save(graph, target)


def _checkpoint(seed):
    """Random weights whose last layers are scaled until masks use both sides of 0.5."""
    torch.manual_seed(seed)
    model = BASNet(2).eval()
    preprocess = Preprocess(height=SIZE, width=SIZE)
    images = torch.from_numpy(np.stack([preprocess.apply(image) for image in draw_pairs(4, SIZE)[0]]))
    with torch.no_grad():
        coarse = model.predict.side_outputs.convs["stage1"]
        coarse.weight *= 3 / model(images).decoder1.std()
        model.refine.output.weight /= (model(images).refined - model(images).decoder1).std()
        model.refine.output.bias -= model(images).refined.median()
    return Checkpoint(
        width=2, state=model.state_dict(), preprocess=preprocess, postprocess=Postprocess(), origin="test"
    )


@pytest.fixture
def picture_folder(tmp_path):
    """Three drawn pictures directly in a folder."""
    folder = tmp_path / "pictures"
    folder.mkdir()
    for i, image in enumerate(draw_pairs(3, 72, seed=5)[0]):
        write_png(folder / f"disc{i}.png", image[..., ::-1])
    return folder


@pytest.fixture
def data_set(tmp_path):
    """Three drawn pictures with masks, laid out as a data set."""
    root = tmp_path / "set"
    for name in ("images", "masks"):
        (root / name).mkdir(parents=True)
    for i, (image, mask) in enumerate(zip(*draw_pairs(3, 72, seed=5), strict=True)):
        write_png(root / "images" / f"disc{i}.png", cv2.cvtColor(image, cv2.COLOR_RGB2BGR))
        write_png(root / "masks" / f"disc{i}.png", mask)
    return root
