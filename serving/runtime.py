"""The two libraries that run the graph: ONNX Runtime everywhere, OpenVINO where it is faster."""

import logging
from pathlib import Path
from typing import Protocol

import numpy as np
import numpy.typing as npt

from errors import PipelineError
from serving.packing import PackedRows
from serving.processor import has_bf16

ONNXRUNTIME = "onnxruntime"
OPENVINO = "openvino"

log = logging.getLogger(__name__)


class Runtime(Protocol):
    """A loaded graph."""

    name: str
    precision: str

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        """Probabilities, FP32 [len(rows.first_tokens), labels]."""


class OnnxRuntime:
    """The graph in ONNX Runtime: CUDA where this build of it has CUDA, float32 on the CPU elsewhere."""

    name = ONNXRUNTIME

    def __init__(self, graph: Path, threads: int) -> None:
        """Load `graph` to run on `threads` threads."""
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Threads that spin while they wait would take the core from the gateway.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        available = onnxruntime.get_available_providers()
        providers = [name for name in ("CUDAExecutionProvider", "CPUExecutionProvider") if name in available]
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
        self.precision = "float32"

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        """Probabilities, FP32 [len(rows.first_tokens), labels]."""
        (probabilities,) = self._session.run(None, _feed(rows))
        return np.asarray(probabilities, dtype=np.float32)


class OpenVino:
    """The graph in OpenVINO: bfloat16 where the processor has it, float32 elsewhere.

    OpenVINO's own Python runtime, because its plugin for ONNX Runtime refuses processors of other
    makers than Intel, and the same graph runs twice as fast with it on AMD's (see the README).
    """

    name = OPENVINO

    def __init__(self, graph: Path, threads: int) -> None:
        """Compile `graph` to run on `threads` threads."""
        import openvino

        self.precision = "bfloat16" if has_bf16() else "float32"
        compiled = openvino.Core().compile_model(
            str(graph),
            "CPU",
            {
                "INFERENCE_NUM_THREADS": threads,
                "NUM_STREAMS": 1,
                # Pinned, all one-thread instances would sit on the first core (design, finding 5).
                "ENABLE_CPU_PINNING": False,
                "INFERENCE_PRECISION_HINT": "bf16" if has_bf16() else "f32",
            },
        )
        self._request = compiled.create_infer_request()

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        """Probabilities, FP32 [len(rows.first_tokens), labels]."""
        self._request.infer(_feed(rows), share_inputs=True)
        # A copy, because the next run writes over the tensor.
        return np.array(self._request.get_output_tensor(0).data, dtype=np.float32)


def choose_runtime(setting: str) -> str:
    """The runtime of the setting; for `auto` the faster one: OpenVINO with bfloat16, unless there is CUDA."""
    if setting != "auto":
        return setting
    import onnxruntime

    if "CUDAExecutionProvider" in onnxruntime.get_available_providers():
        return ONNXRUNTIME
    return OPENVINO if has_bf16() else ONNXRUNTIME


def load_runtime(name: str, graph: Path, threads: int) -> Runtime:
    """Load `graph` in the runtime called `name`.

    Raises:
        PipelineError: there is no such runtime.
    """
    if name == ONNXRUNTIME:
        return OnnxRuntime(graph, threads)
    if name == OPENVINO:
        return OpenVino(graph, threads)
    raise PipelineError(f"There is no runtime {name!r}; it is {ONNXRUNTIME} or {OPENVINO}.")


def _feed(rows: PackedRows) -> dict[str, npt.NDArray[np.int64]]:
    return {
        "input_ids": rows.input_ids,
        "position_ids": rows.position_ids,
        "segment_ids": rows.segment_ids,
        "first_tokens": rows.first_tokens,
    }
