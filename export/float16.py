"""Makes the float16 graph, which runs on GPUs."""

from pathlib import Path

from serving.model_repo.variants import FLOAT16, FLOAT_GRAPH, ONNXRUNTIME, Variant


def halve(directory: Path) -> None:
    """Make the float16 graph from the float graph of the bundle in `directory`; its output stays float32."""
    import onnx
    from onnxruntime.transformers.float16 import convert_float_to_float16

    model = convert_float_to_float16(onnx.load(str(directory / FLOAT_GRAPH)), keep_io_types=True)
    onnx.save(model, str(directory / Variant(ONNXRUNTIME, FLOAT16).graph))
