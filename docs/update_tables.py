"""Update the documents' figures from benchmarks/reports and the built-in model.

    python docs/update_tables.py

Writes the blocks between `<!-- table: NAME -->` and `<!-- end -->` in README.md and docs/model-card.md, the tables of
docs/results.md and the pictures in docs/images. Nothing is measured here: `make report` does that.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from basnet_benchmarks.results import ACCURACY

ROOT = Path(__file__).parents[1]
REPORTS = ROOT / "benchmarks" / "reports"
MODELS = ROOT / "runtime" / "basnet_runtime" / "models"
FP32, INT8 = MODELS / "basnet-lite.onnx", MODELS / "basnet-lite-int8.onnx"
CHECKPOINT = MODELS / "basnet-lite.safetensors"
PAPER = "0.860 / 0.047 ([paper](https://arxiv.org/abs/2101.04704), all of DUTS-TE)"
PAPER_PARAMETERS = 87_060_360
Values = Mapping[str, Any]


def report(name: str) -> Any:
    """Read benchmarks/reports/NAME.json."""
    return json.loads((REPORTS / f"{name}.json").read_text(encoding="utf-8"))


def results() -> str:
    """README's table: the built-in model beside BASNet of the paper's width."""
    fp32, int8 = (report(name)["datasets"][0] for name in ("accuracy-dev", "accuracy-dev-int8"))
    latency, video, parity = report("latency-cpu"), report("video-cpu"), report("parity-dev")
    frames = {row["model"]: row["frames_per_second"]["value"] for row in video["results"]}
    rows = [
        (f"maxF / MAE, {fp32['pictures']} pictures of DUTS-TE", _scores(fp32), _scores(int8), PAPER),
        (
            "network, one picture, ms",
            _milliseconds(latency, CHECKPOINT, "onnxruntime", "fp32"),
            _milliseconds(latency, INT8, "openvino", "int8"),
            _milliseconds(latency, None, "pytorch", "fp32"),
        ),
        (
            "1280 x 720 video, file to file, frames/s",
            *(f"{frames[path.name]:.1f}" for path in (FP32, INT8)),
            "not measured",
        ),
        (
            "file, MB",
            *(f"{path.stat().st_size / 1e6:.1f}" for path in (FP32, INT8)),
            f"{4 * PAPER_PARAMETERS / 1e6:.0f}",
        ),
        (
            "boundary IoU with PyTorch FP32, worst picture",
            *(f"{_candidate(parity, *row)['report']['boundary_iou']:.4f}" for row in (_ORT_FP32, _OV_INT8)),
            "the reference",
        ),
    ]
    head = ("", "`basnet-lite`, FP32, ONNX Runtime", "`basnet-lite`, INT8, OpenVINO", "BASNet, width 64, PyTorch FP32")
    machines = "; ".join(dict.fromkeys((_machine(latency), _machine(video))))
    older = " They are of the built-in model before." if _older(latency, video) else ""
    notes = f"Times and frames: medians, in brackets 95 % intervals ({machines}).{older}"
    return "\n".join([*_table([head, *rows]), "", notes])


_ORT_FP32 = ("onnxruntime", "fp32", FP32.name)
_OV_FP32 = ("openvino", "fp32", FP32.name)
_OV_INT8 = ("openvino", "int8")
_ORT_INT8 = ("onnxruntime", "int8 openvino")


def _scores(row: Values) -> str:
    return f"{row['max_f']:.4f} / {row['mae']:.4f}"


def _milliseconds(latency: Values, path: Path | None, backend: str, precision: str) -> str:
    """Median of one candidate with its interval; `path` None is BASNet of width 64."""
    wanted = (path.name if path else 64, backend, precision)
    key = "model" if path else "width"
    (row,) = (row for row in latency["results"] if (row[key], row["backend"], row["precision"]) == wanted)
    low, value, high = (1000 * row["median_s"][name] for name in ("low", "value", "high"))
    return f"{value:.1f} [{low:.1f}, {high:.1f}]"


def _older(*reports: Values) -> bool:
    """Whether a report was measured before the built-in model's files were made."""
    made: str = _manifest(FP32)["created"]
    return any(result["environment"]["date"] < made for result in reports)


def _manifest(path: Path) -> Any:
    return json.loads(path.with_name(f"{path.name}.json").read_text(encoding="utf-8"))


def _candidate(parity: Values, backend: str, precision: str, model: str = "") -> Values:
    rows: Iterable[Values] = parity["candidates"]
    wanted = (backend, precision)
    (row,) = (row for row in rows if (row["backend"], row["precision"]) == wanted and model in ("", row["model"]))
    return row


def _machine(result: Values) -> str:
    found = result["environment"]
    load = f", load before {found['load']:.1f}" if found["load"] else ""
    return f"{found['processor']}, {found['threads']} threads{load}, {found['date'][:10]}"


def backends() -> str:
    """Return README's matrix: what ran where, and what proved it.

    Rows of the CPU's libraries follow the parity reports.
    """
    dev, wide = report("parity-dev"), report("parity-wide")
    own = next(row for row in wide["candidates"] if (row["model"], row["precision"]) == ("w64-int8-ort.onnx", "int8"))
    rounding = "each export rounds every value too ([what a CPU shows](export/README.md#onnx))"
    no_gpu = "**not proven**: no CUDA device was there"
    rows = [
        ("PyTorch", "FP32", "CPU", "the reference of the contract"),
        ("ONNX Runtime", "FP32", "CPU", _verdict(_candidate(dev, *_ORT_FP32), "parity-dev")),
        (
            "ONNX Runtime",
            "FP16",
            "CPU, computed in FP32",
            f"{_verdict(_candidate(dev, 'onnxruntime', 'fp16'), 'parity-dev')}; {rounding}",
        ),
        ("ONNX Runtime, own kernels", "INT8", "CPU", _verdict(own, "parity-wide", "width 64")),
        ("ONNX Runtime, OpenVINO provider", "INT8", "Intel CPU", _verdict(_candidate(dev, *_ORT_INT8), "parity-dev")),
        ("OpenVINO", "FP32", "CPU", _verdict(_candidate(dev, *_OV_FP32), "parity-dev")),
        ("OpenVINO", "INT8", "CPU with VNNI", _verdict(_candidate(dev, *_OV_INT8), "parity-dev")),
        (
            "OpenVINO",
            "bf16",
            "CPU",
            f"{_verdict(_candidate(dev, 'openvino', 'bf16', FP32.name), 'parity-dev')}; on request alone",
        ),
        ("PyTorch", "bf16", "CPU", f"{_verdict(_candidate(dev, 'pytorch', 'bf16'), 'parity-dev')}; on request alone"),
        (
            "TensorRT for RTX",
            "FP32, FP16, INT8, FP8",
            "RTX GPUs",
            "engines build without a GPU (`make test`); running them is **not proven**",
        ),
        ("TensorRT", "FP32, FP16, INT8, FP8", "NVIDIA GPUs", no_gpu),
        ("PyTorch, ONNX Runtime", "FP32, FP16", "CUDA", no_gpu),
    ]
    return "\n".join(_table([("backend", "precision", "device", "proven by"), *rows], numeric=False))


def _verdict(row: Values, name: str, what: str = "") -> str:
    link = f"[{name}](docs/results.md#{name})"
    found = row["report"]
    counted = f"{found['pictures']} pictures" + (f", {what}" if what else "")
    if row["verdict"] == "passed":
        return f"{link}: passed, {counted}"
    return (
        f"{link}: **failed**, {counted} ({row['remarks'][0].split(' on ')[0]}, limit {row['remarks'][0].split()[-1]})"
    )


def scores() -> str:
    """The model card's scores."""
    (row,) = report("accuracy-dev")["datasets"]
    table = _table([tuple(ACCURACY.values()), tuple(f"{row[name]:.4f}" for name in ACCURACY)], first_is_name=False)
    return "\n".join(
        [
            f"{row['pictures']} pairs of DUTS-TE, each mask resized back to its picture:",
            f"**maxF {row['max_f']:.4f}, MAE {row['mae']:.4f}** (`basnet-lite.onnx` in ONNX Runtime; maxF from the",
            "mean precision and recall per threshold, beta^2 = 0.3).",
            "",
            *table,
        ]
    )


def int8() -> str:
    """The model card's paragraph on INT8."""
    manifest = _manifest(INT8)
    found = _candidate(report("parity-dev"), *_OV_INT8)["report"]
    parts = ", ".join(f"`{part}`" for part in manifest["keep_fp32"])
    return "\n".join(
        [
            f"INT8: {100 * manifest['quantization']['int8_share']:.0f} % of the multiply-adds"
            + (f"; these parts stay FP32: {parts}." if parts else "."),
            f"The boundary IoU with PyTorch's masks is {found['boundary_iou']:.3f} on the worst of {found['pictures']}",
            f"pictures; the contract asks for {found['tolerance']['boundary_iou']:.2f}.",
        ]
    )


def threshold() -> str:
    """The model card's sentence on the salience threshold."""
    found = report("threshold-dev")
    share = f"{100 * found['lost_allowed']:.0f} %"
    return "\n".join(
        [
            f"Masks with a salience score below {found['threshold']:.3f} are reported as not salient. All but {share}",
            "of every second picture of the 200 reach that score ([table](results.md#threshold-dev)).",
        ]
    )


def _table(rows: Iterable[tuple[str, ...]], *, numeric: bool = True, first_is_name: bool = True) -> list[str]:
    head, *body = rows
    rule = ["---" if not numeric or (first_is_name and i == 0) else "---:" for i in range(len(head))]
    return [f"| {' | '.join(cells)} |" for cells in (head, rule, *body)]


BLOCKS = {
    ROOT / "README.md": {"results": results, "backends": backends},
    ROOT / "docs" / "model-card.md": {"scores": scores, "int8": int8, "threshold": threshold},
}


def renewed(path: Path) -> str:
    """The text of a document with its blocks written anew.

    Raises:
        ValueError: A block is missing from the document, or unknown.
    """
    text = path.read_text(encoding="utf-8")
    names = re.findall(r"<!-- table: (\w+) -->", text)
    if sorted(names) != sorted(BLOCKS[path]):
        raise ValueError(f"{path.name}: blocks {names}, must be {list(BLOCKS[path])}. Restore the markers")
    for name, written in BLOCKS[path].items():
        block = f"<!-- table: {name} -->\n\n{written()}\n\n<!-- end -->"
        text = re.sub(rf"<!-- table: {name} -->.*?<!-- end -->", lambda _, block=block: block, text, flags=re.DOTALL)
    return text


def main() -> None:
    """Write the documents and their pictures."""
    from pictures import save

    from basnet_benchmarks.report import save_all

    for path in BLOCKS:
        path.write_text(renewed(path), encoding="utf-8")
    save_all(sorted(REPORTS.glob("*.json")), ROOT / "docs" / "results.md", overwrite=True)
    for name in ("demo", "examples"):
        save(name, ROOT / "docs" / "images" / f"{name}.jpg")


if __name__ == "__main__":
    main()
