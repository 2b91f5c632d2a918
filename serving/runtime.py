"""The two libraries that run the graph: ONNX Runtime everywhere, OpenVINO where it is faster."""

from dataclasses import dataclass
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Literal, Protocol

import numpy as np
import numpy.typing as npt

from serving.packing import PackedRows
from serving.processor import has_bf16, has_vnni

RuntimeName = Literal["onnxruntime", "openvino"]
Precision = Literal["float32", "bfloat16", "int8"]

ONNXRUNTIME: RuntimeName = "onnxruntime"
OPENVINO: RuntimeName = "openvino"
FLOAT32: Precision = "float32"
BFLOAT16: Precision = "bfloat16"
INT8: Precision = "int8"

FLOAT_GRAPH = "model.onnx"
_INT8_GRAPHS: dict[RuntimeName, str] = {ONNXRUNTIME: "model.int8.onnxruntime.onnx", OPENVINO: "model.int8.openvino.xml"}
"""An int8 graph belongs to a runtime: what one runs fast is slow in the other (design, finding 4)."""


@dataclass(frozen=True)
class Variant:
    """One way to run a version of the model."""

    runtime: RuntimeName
    precision: Precision

    @property
    def graph(self) -> str:
        """The file of the bundle that it runs."""
        return _INT8_GRAPHS[self.runtime] if self.precision == INT8 else FLOAT_GRAPH

    def __str__(self) -> str:
        """As logs and tables name it."""
        return f"{self.runtime} {self.precision}"


class Graph(Protocol):
    """A loaded graph. Several threads may run it at the same time."""

    prepares_each_shape: bool
    """Whether the first run of a shape takes longer than the next."""

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        """Probabilities, FP32 [len(rows.first_tokens), labels]."""


def float_variants() -> list[Variant]:
    """The variants that run the float graph on this processor; the first is the reference of the others.

    bfloat16 only where the processor multiplies it natively, for elsewhere it is slower than float32.
    """
    return [Variant(ONNXRUNTIME, FLOAT32), Variant(OPENVINO, BFLOAT16 if has_bf16() else FLOAT32)]


def int8_variants() -> list[Variant]:
    """The int8 variants that may be faster than float32 on this processor.

    Without VNNI OpenVINO's int8 is slower than its float32 (0.75 times as fast, MiniLM on Zen 3).
    """
    return [Variant(OPENVINO, INT8), Variant(ONNXRUNTIME, INT8)] if has_vnni() else [Variant(ONNXRUNTIME, INT8)]


def has_cuda() -> bool:
    """Whether ONNX Runtime has CUDA and a GPU here."""
    import onnxruntime

    return "CUDAExecutionProvider" in onnxruntime.get_available_providers()


def load_graph(directory: Path, variant: Variant, streams: int, threads: int) -> Graph:
    """Load the graph of `variant` from a bundle, to be run by `streams` callers at a time on `threads` threads each."""
    if variant.runtime == ONNXRUNTIME:
        return _OnnxRuntimeGraph(directory / variant.graph, threads)
    return _OpenVinoGraph(directory / variant.graph, variant.precision, streams, threads)


class _OnnxRuntimeGraph:
    """On CUDA where this build of ONNX Runtime has it."""

    prepares_each_shape = False

    def __init__(self, graph: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin while they wait would take the core from the gateway.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = ["CUDAExecutionProvider", "CPUExecutionProvider"] if has_cuda() else ["CPUExecutionProvider"]
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=providers)

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        (probabilities,) = self._session.run(None, feed(rows))
        return np.asarray(probabilities, dtype=np.float32)


class _OpenVinoGraph:
    """OpenVINO's own Python runtime, because its plugin for ONNX Runtime refuses processors of other makers than
    Intel, and the same graph runs faster with it on AMD's (see docs/developing.md)."""

    prepares_each_shape = True

    def __init__(self, graph: Path, precision: Precision, streams: int, threads: int) -> None:
        import openvino

        # The first call makes a table, during which other threads may run; one that asks for the table too then waits
        # for it and keeps Python's lock, without which it is never made. Hence here, before any other thread asks.
        openvino.Type.i64.to_dtype()
        compiled = openvino.Core().compile_model(
            str(graph),
            "CPU",
            {
                "NUM_STREAMS": streams,
                "INFERENCE_NUM_THREADS": streams * threads,
                # Pinned, the threads of several processes would sit on the same cores (design, finding 5).
                "ENABLE_CPU_PINNING": False,
                # Of what is not int8 already.
                "INFERENCE_PRECISION_HINT": "bf16" if has_bf16() and precision != FLOAT32 else "f32",
            },
        )
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._requests.put(compiled.create_infer_request())

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        request = self._requests.get()
        try:
            request.infer(feed(rows), share_inputs=True)
            # A copy, because the next run writes over the tensor.
            return np.array(request.get_output_tensor(0).data, dtype=np.float32)
        finally:
            self._requests.put(request)


def feed(rows: PackedRows) -> dict[str, npt.NDArray[np.int64]]:
    """The graph's inputs by name."""
    return {
        "input_ids": rows.input_ids,
        "position_ids": rows.position_ids,
        "segment_ids": rows.segment_ids,
        "first_tokens": rows.first_tokens,
    }
