"""The libraries that run the graph, as several threads use them."""

import logging
import signal
import subprocess
import sys
from pathlib import Path

import onnxruntime
import pytest

from common.errors import PipelineError
from serving.backend import runtime
from serving.backend.runtime import has_cuda, load_graph
from serving.model_repo.variants import FLOAT32, ONNXRUNTIME, Variant
from tests.e2e.conftest import PROJECT

_FIRST_RUNS = """
import sys, threading
from pathlib import Path
from serving.backend.packing import rows_of_shape
from serving.backend.runtime import load_graph
from serving.model_repo.variants import FLOAT32, OPENVINO, Variant
graph = load_graph(Path(sys.argv[1]), Variant(OPENVINO, FLOAT32), streams=8, threads=1)
rows = rows_of_shape(1, 64, 64, 0)
together = threading.Barrier(8)
answered = []
def run():
    together.wait()
    answered.append(len(graph.run(rows)))
sys.setswitchinterval(1e-6)
threads = [threading.Thread(target=run) for _ in range(8)]
for thread in threads:
    thread.start()
for thread in threads:
    thread.join()
print(answered)
"""


def run(code: str, bundle: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        [sys.executable, "-c", code, bundle],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        preexec_fn=lambda: signal.signal(signal.SIGINT, signal.default_int_handler),
    )


def test_threads_that_use_openvino_first_at_once_do_not_wait_for_each_other_for_ever(bert_bundle: Path) -> None:
    """As when a version is loaded; here threads take turns as often as they can, so that it would happen often."""
    ended = run(_FIRST_RUNS, bert_bundle)
    assert (ended.stdout, ended.returncode) == (f"{[1] * 8}\n", 0), ended.stderr


_INTERRUPTED_AFTERWARDS = """
import os, signal, sys, threading, time
from pathlib import Path
from serving.backend.runtime import load_graph
from serving.model_repo.variants import FLOAT32, OPENVINO, Variant
graphs = [load_graph(Path(sys.argv[1]), Variant(OPENVINO, FLOAT32), streams=1, threads=1) for _ in range(3)]
del graphs[0]
del graphs[0]
thread = threading.Thread(target=graphs.clear)
thread.start()
thread.join()
try:
    os.kill(os.getpid(), signal.SIGINT)
    time.sleep(60)
except KeyboardInterrupt:
    print("interrupted")
"""


def test_ctrl_c_works_after_graphs_were_loaded_and_unloaded(bert_bundle: Path) -> None:
    """In the order in which they were loaded, and by another thread."""
    ended = run(_INTERRUPTED_AFTERWARDS, bert_bundle)
    assert (ended.stdout, ended.returncode) == ("interrupted\n", 0), ended.stderr


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_a_build_for_cuda_that_cannot_use_it_is_told(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where a library of CUDA is missing: it is listed, and sessions run on the processor without an error."""
    listed = ["CUDAExecutionProvider", "CPUExecutionProvider"]
    monkeypatch.setattr(onnxruntime, "get_available_providers", lambda: listed)
    has_cuda.cache_clear()
    try:
        with caplog.at_level(logging.WARNING):
            assert not has_cuda()
    finally:
        has_cuda.cache_clear()
    assert "built for CUDA but cannot use it here" in caplog.text


@pytest.mark.filterwarnings("ignore:Specified provider 'CUDAExecutionProvider'")
def test_a_graph_that_does_not_get_the_gpu_is_refused(bert_bundle: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "has_cuda", lambda: True)
    with pytest.raises(PipelineError, match="cannot be loaded on the GPU"):
        load_graph(bert_bundle, Variant(ONNXRUNTIME, FLOAT32), streams=1, threads=1)
