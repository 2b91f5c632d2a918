"""The libraries that run the graph, as several threads use them."""

import subprocess
import sys
from pathlib import Path

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


def test_threads_that_use_openvino_first_at_once_do_not_wait_for_each_other_for_ever(bert_bundle: Path) -> None:
    """As when a version is loaded; here threads take turns as often as they can, so that it would happen often."""
    ended = subprocess.run(
        [sys.executable, "-c", _FIRST_RUNS, bert_bundle],
        cwd=PROJECT,
        capture_output=True,
        text=True,
        timeout=120,
        check=True,
    )
    assert ended.stdout == f"{[1] * 8}\n"
