"""The variants in which a model version can run, with their names in its bundle."""

from dataclasses import dataclass
from typing import Literal

RuntimeName = Literal["onnxruntime", "openvino"]
Precision = Literal["float32", "bfloat16", "float16", "int8"]

ONNXRUNTIME: RuntimeName = "onnxruntime"
OPENVINO: RuntimeName = "openvino"
FLOAT32: Precision = "float32"
BFLOAT16: Precision = "bfloat16"
FLOAT16: Precision = "float16"
"""Only on GPUs."""
INT8: Precision = "int8"

FLOAT_GRAPH = "model.onnx"
_FLOAT16_GRAPH = "model.float16.onnx"
_INT8_GRAPHS: dict[RuntimeName, str] = {ONNXRUNTIME: "model.int8.onnxruntime.onnx", OPENVINO: "model.int8.openvino.xml"}
"""Each runtime has its own int8 graph, because a graph that is fast in one is slow in the other."""


@dataclass(frozen=True)
class Variant:
    """A combination of runtime and precision that can run a model version."""

    runtime: RuntimeName
    precision: Precision

    @property
    def graph(self) -> str:
        """Name of the bundle's graph file that this variant runs."""
        if self.precision == INT8:
            return _INT8_GRAPHS[self.runtime]
        return _FLOAT16_GRAPH if self.precision == FLOAT16 else FLOAT_GRAPH

    def __str__(self) -> str:
        """Return the variant's name for logs and tables."""
        return f"{self.runtime} {self.precision}"
