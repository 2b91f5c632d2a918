"""The two inference runtimes: ONNX Runtime everywhere, OpenVINO where it is faster."""

import ctypes
import logging
from collections.abc import Iterator
from contextlib import contextmanager
from functools import cache
from pathlib import Path
from queue import SimpleQueue
from typing import Any, Protocol

import numpy as np
import numpy.typing as npt

from common.errors import PipelineError
from serving.backend.cpu import has_bf16, has_vnni
from serving.backend.packing import PackedRows
from serving.model_repo.variants import BFLOAT16, FLOAT16, FLOAT32, INT8, ONNXRUNTIME, OPENVINO, Precision, Variant

_CUDA = "CUDAExecutionProvider"
_CPU = "CPUExecutionProvider"
_IDENTITY = (
    b'\x08\x08\x12\x00:6\n\x10\n\x01x\x12\x01y"\x08Identity\x12\x00Z\x0f\n\x01x\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01'
    b"b\x0f\n\x01y\x12\n\n\x08\x08\x01\x12\x04\n\x02\x08\x01B\x04\n\x00\x10\x11"
)
"""An ONNX model that returns its input."""

log = logging.getLogger(__name__)


class Graph(Protocol):
    """A loaded graph. Several threads may run it at the same time."""

    prepares_each_shape: bool
    """True if the first run of a shape takes longer than later runs."""

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        """Return the probabilities, FP32 [len(rows.first_tokens), labels]."""


def float_variants() -> list[Variant]:
    """Return the variants that run the float graph on this processor; the first is the reference for the others.

    bfloat16 is used only if the processor multiplies it natively; otherwise it is slower than float32.
    """
    return [Variant(ONNXRUNTIME, FLOAT32), Variant(OPENVINO, BFLOAT16 if has_bf16() else FLOAT32)]


def int8_variants() -> list[Variant]:
    """Return the int8 variants that may be faster than float32 on this processor.

    Without VNNI, OpenVINO's int8 is slower than its float32 (0.75 times as fast, MiniLM on Zen 3).
    """
    return [Variant(OPENVINO, INT8), Variant(ONNXRUNTIME, INT8)] if has_vnni() else [Variant(ONNXRUNTIME, INT8)]


def gpu_variants() -> list[Variant]:
    """Return the variants that may be faster than float32 on this machine's GPU; none without one."""
    return [Variant(ONNXRUNTIME, FLOAT16)] if has_cuda() else []


@cache
def has_cuda() -> bool:
    """Return whether ONNX Runtime can run graphs on CUDA here; a warning says so if only its build can.

    A session decides. The list of providers only says what ONNX Runtime was built with. If their libraries or the
    driver are missing, a session runs on the processor, without an error.
    """
    import onnxruntime

    if _CUDA not in onnxruntime.get_available_providers():
        return False
    onnxruntime.preload_dlls()  # from NVIDIA's packages, which are on no path of the dynamic linker
    if _CUDA in onnxruntime.InferenceSession(_IDENTITY, providers=[_CUDA, _CPU]).get_providers():
        return True
    log.warning(
        "ONNX Runtime was built for CUDA but cannot use it here, so graphs run on the processor. Its own message above "
        "names the library or driver that is missing (docs/how-to-gpu.md)."
    )
    return False


def load_graph(directory: Path, variant: Variant, streams: int, threads: int) -> Graph:
    """Load the graph of `variant` from a bundle, for `streams` concurrent callers with `threads` threads each."""
    if variant.runtime == ONNXRUNTIME:
        return _OnnxRuntimeGraph(directory / variant.graph, threads)
    return _OpenVinoGraph(directory / variant.graph, variant.precision, streams, threads)


class _OnnxRuntimeGraph:
    """A graph in ONNX Runtime, on CUDA if it can be used here."""

    prepares_each_shape = False

    def __init__(self, graph: Path, threads: int) -> None:
        import onnxruntime

        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 3
        # Spinning threads would take CPU time from the gateway.
        options.add_session_config_entry("session.intra_op.allow_spinning", "0")
        providers = [_CUDA, _CPU] if has_cuda() else [_CPU]
        self._session = onnxruntime.InferenceSession(str(graph), options, providers=providers)
        if self._session.get_providers() != providers:
            raise PipelineError(
                f"{graph} cannot be loaded on the GPU, though ONNX Runtime can use it. Free memory on the GPU, or set "
                "SENTIMENT_RUNTIME=openvino."
            )

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        (probabilities,) = self._session.run(None, feed(rows))
        return np.asarray(probabilities, dtype=np.float32)


@contextmanager
def own_signal_stack() -> Iterator[None]:
    """Give this thread back its alternate signal stack, which is where CPython's signal handlers run if there is one.

    OpenVINO's CPU plugin replaces it, and frees its own when it is unloaded. If another thread unloads it, or if the
    first of two is unloaded first, the freed memory stays registered, and Ctrl-C ends in a segmentation fault.
    """
    sigaltstack = ctypes.CDLL(None).sigaltstack
    stack = (ctypes.c_size_t * 3)()  # stack_t: address, flags, size
    sigaltstack(None, stack)
    try:
        yield
    finally:
        sigaltstack(stack, None)


class _OpenVinoGraph:
    """A graph in OpenVINO's own Python runtime. OpenVINO's plugin for ONNX Runtime refuses processors other than
    Intel's, and OpenVINO runs the same graph faster on AMD's (see docs/developing.md)."""

    prepares_each_shape = True

    def __init__(self, graph: Path, precision: Precision, streams: int, threads: int) -> None:
        import openvino

        # The first call builds a table and lets other threads run meanwhile. If another thread needs the table then, it
        # waits while it holds the GIL, which is a deadlock. So build the table here, before any other thread needs it.
        openvino.Type.i64.to_dtype()
        options = {
            "NUM_STREAMS": streams,
            "INFERENCE_NUM_THREADS": streams * threads,
            # With pinning, several processes would put their threads on the same cores.
            "ENABLE_CPU_PINNING": False,
            # Applies to operations that are not int8 already.
            "INFERENCE_PRECISION_HINT": "bf16" if has_bf16() and precision != FLOAT32 else "f32",
        }
        with own_signal_stack():
            compiled = openvino.Core().compile_model(str(graph), "CPU", options)
        self._requests: SimpleQueue[Any] = SimpleQueue()
        for _ in range(streams):
            self._requests.put(compiled.create_infer_request())

    def run(self, rows: PackedRows) -> npt.NDArray[np.float32]:
        request = self._requests.get()
        try:
            request.infer(feed(rows), share_inputs=True)
            # Copy, because the next run overwrites the tensor.
            return np.array(request.get_output_tensor(0).data, dtype=np.float32)
        finally:
            self._requests.put(request)


def feed(rows: PackedRows) -> dict[str, npt.NDArray[np.int64]]:
    """Return the graph's inputs by name."""
    return {
        "input_ids": rows.input_ids,
        "position_ids": rows.position_ids,
        "segment_ids": rows.segment_ids,
        "first_tokens": rows.first_tokens,
    }
