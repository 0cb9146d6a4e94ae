"""The Open Inference Protocol v2: stock client, tensors in both forms, and errors that it understands."""

import json
from dataclasses import replace

import httpx
import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from basnet_runtime.media.image.pictures import read_picture
from tests.runtime.serve.conftest import HeldBackend

tritonclient = pytest.importorskip("tritonclient.http", reason="needs tritonclient[http]")
NAME = "brightness"


@pytest.fixture
def stock(server):
    with tritonclient.InferenceServerClient(server.url.removeprefix("http://"), network_timeout=30) as client:
        yield client


@pytest.mark.parametrize("binary", [True, False])
@pytest.mark.parametrize("packed", [None, "gzip", "deflate"])
def test_frames_give_the_masks_of_the_command(binary, packed, stock, client, photo):
    import pyvips

    image = read_picture(photo).image_HWC
    frame = tritonclient.InferInput("frame", [1, *image.shape], "UINT8")
    frame.set_data_from_numpy(image[None], binary_data=binary)
    wanted = tritonclient.InferRequestedOutput("mask", binary_data=binary)
    answer = stock.infer(
        f"{NAME}-frames", [frame], outputs=[wanted], request_id="7", request_compression_algorithm=packed
    )
    assert answer.get_response()["id"] == "7"
    mask = pyvips.Image.new_from_buffer(client.post("/v1/mask", content=photo.read_bytes()).content, "").numpy()
    assert np.array_equal(answer.as_numpy("mask")[0], mask)


@pytest.mark.parametrize("binary", [True, False])
def test_tensors_are_the_networks_own(binary, stock, server):
    batch = np.random.default_rng(0).random((3, 3, 32, 32), np.float32)
    image = tritonclient.InferInput("image", list(batch.shape), "FP32")
    image.set_data_from_numpy(batch, binary_data=binary)
    found = stock.infer(NAME, [image], outputs=[tritonclient.InferRequestedOutput("mask", binary_data=binary)])
    assert np.allclose(found.as_numpy("mask"), server.service.model.infer(list(batch)), atol=1e-7)


def test_metadata(stock):
    assert stock.is_server_live()
    assert stock.is_server_ready()
    assert stock.is_model_ready(NAME, "1")
    assert stock.get_server_metadata()["extensions"] == ["binary_tensor_data"]
    found = stock.get_model_metadata(NAME)
    assert found["inputs"] == [{"name": "image", "datatype": "FP32", "shape": [-1, 3, 32, 32]}]
    frames = stock.get_model_metadata(f"{NAME}-frames", "1")
    assert frames["outputs"] == [{"name": "mask", "datatype": "UINT8", "shape": [-1, -1, -1]}]


def test_a_network_of_free_size_is_served_at_its_own(serve):
    """As `basnet-export triton` writes it: a larger one would take any memory."""
    backend = HeldBackend()
    backend.input = replace(backend.input, shape=(None, 3, None, None))
    backend.output = replace(backend.output, shape=(None, 1, None, None))
    with serve(backend) as server, httpx.Client(base_url=server.url) as client:
        found = client.get(f"/v2/models/{NAME}").json()
        answer = client.post(f"/v2/models/{NAME}/infer", json=request(shape=[1, 3, 64, 64], data=[0.5] * 3 * 64 * 64))
        own = client.post(f"/v2/models/{NAME}/infer", json=request())
    assert [found[side][0]["shape"] for side in ("inputs", "outputs")] == [[-1, 3, 32, 32], [-1, 1, 32, 32]]
    assert answer.json()["error"] == "input image: shape [1, 3, 64, 64], must be [-1, 3, 32, 32], -1 any from 1"
    assert (answer.status_code, own.status_code) == (400, 200)


def test_the_stock_client_reads_every_refusal(stock):
    refused = tritonclient.InferenceServerClient.get_model_metadata
    for call, said in (
        (lambda: refused(stock, "other"), "model: 'other', must be brightness or brightness-frames"),
        (lambda: refused(stock, NAME, "2"), "model version: '2', must be 1"),
        (lambda: stock.get_model_config(NAME), "not found"),
        (lambda: stock.load_model(NAME), "not found"),
    ):
        with pytest.raises(tritonclient.InferenceServerException, match=said):
            call()


def request(**changes):
    tensor = {"name": "image", "datatype": "FP32", "shape": [1, 3, 32, 32], "data": [0.5] * 3072}
    return {"inputs": [tensor | changes]}


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (b"{", "request: its JSON"),
        (b"[]", "request: must be a JSON object"),
        ({}, "inputs: must be one tensor, image FP32"),
        ({"inputs": []}, "inputs: must be one tensor"),
        (request(name="frame"), "input: frame FP32, must be image FP32"),
        (request(datatype="FP16"), "input: image FP16"),
        (request(shape=[1, 3, 64, 64]), "input image: shape [1, 3, 64, 64]"),
        (request(shape=[0, 3, 32, 32]), "input image: shape [0"),
        (request(shape="x"), "input image: shape x"),
        (request(shape=[True, 3, 32, 32]), "input image: shape"),
        (request(shape=[10**9, 3, 32, 32]), "input image: shape [1000000000, 3, 32, 32], has more"),
        (request(data=[1, 2]), "input image: 2 values, must be 3072"),
        (request(data="x"), "input image: data must be numbers"),
        (request(data=None), "input image: "),
        (request(data=[float("nan")] * 3072), "input image: has values that are no finite numbers"),
        (request(data=[1e39] * 3072), "input image: has values that are no finite numbers"),  # beyond FP32
        (request(name="\ud800"), "input: \ud800 FP32, must be"),
        (request(parameters={"binary_data_size": 9}), "input image: 0 binary bytes, must be 12288"),
        (request() | {"outputs": [{"name": "x"}]}, "output: 'x', must be mask"),
        (request() | {"outputs": 7}, "outputs: "),
        (request() | {"outputs": [{"name": "mask", "parameters": {"classification": 2}}]}, "output mask: class"),
    ],
)
def test_requests_that_are_refused(body, said, client):
    content = body if isinstance(body, bytes) else json.dumps(body)
    answer = client.post(f"/v2/models/{NAME}/infer", content=content)
    assert answer.status_code == 400
    assert set(answer.json()) == {"error"}
    assert answer.json()["error"].startswith(said)


@pytest.mark.parametrize("value", [256, -1, 0.5])
def test_bytes_are_whole_numbers(value, client):
    tensor = {"name": "frame", "datatype": "UINT8", "shape": [1, 1, 1, 3], "data": [value] * 3}
    answer = client.post(f"/v2/models/{NAME}-frames/infer", json={"inputs": [tensor]})
    assert answer.json()["error"].startswith("input frame: values must be whole numbers")


def test_an_id_comes_back_whatever_it_holds(client):
    answer = client.post(f"/v2/models/{NAME}/infer", content=json.dumps(request() | {"id": "\ud800\n"}))
    assert (answer.status_code, json.loads(answer.content)["id"]) == (200, "\ud800\n")


def test_a_defect_is_answered_in_the_same_form(client, server, monkeypatch, capfd):
    def broken(name, version):
        raise ZeroDivisionError("secret /path")

    monkeypatch.setattr(server.service, "check_ready", broken)
    answer = client.get("/v2/health/ready")
    assert (answer.status_code, set(answer.json())) == (500, {"error"})
    assert client.get("/health/ready").headers["content-type"] == "application/problem+json"
    client.get("/health/live")  # by then the lines before are written
    logged = capfd.readouterr().err
    assert logged.count('"status": 500') == 2
    assert "Traceback" not in logged


@pytest.mark.parametrize("length", ["x", "999999", "-1", "\xb2", "9" * 5000])
def test_a_wrong_length_of_the_header(length, client):
    answer = client.post(
        f"/v2/models/{NAME}/infer", content=b"{}", headers={"Inference-Header-Content-Length": length.encode("latin-1")}
    )
    assert (answer.status_code, "error" in answer.json()) == (400, True)


def test_limits_answer_in_the_same_form(serve):
    with serve(max_bytes=1000) as server:
        answer = httpx.post(f"{server.url}/v2/models/{NAME}/infer", content=b"x" * 2000)
    assert (answer.status_code, set(answer.json())) == (413, {"error"})


PARTS = ("name", "datatype", "shape", "data", "parameters")
json_values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=8), inner, max_size=4),
    max_leaves=12,
)


@settings(deadline=None, max_examples=60, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    body=st.fixed_dictionaries(
        {}, optional={"inputs": json_values, "outputs": json_values, "parameters": json_values, "id": json_values}
    ),
    tensor=st.fixed_dictionaries(
        {}, optional=dict.fromkeys(("name", "datatype", "shape", "data", "parameters"), json_values)
    ),
)
def test_no_json_is_a_server_error(body, tensor, client):
    for sent in (body, {**body, "inputs": [tensor]}, {**body, **request(**tensor)}):
        answer = client.post(f"/v2/models/{NAME}/infer", content=json.dumps(sent))
        assert answer.status_code in (200, 400), (sent, answer.text)
