"""Writes a version in MLflow's format, so that `mlflow.pyfunc.load_model` and `mlflow models serve` run it."""

import shutil
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.metadata import version
from pathlib import Path

import pandas as pd  # type: ignore[import-untyped]

from serving.model_repo.bundle import DESCRIPTION, TOKENIZER, Bundle
from serving.model_repo.variants import FLOAT_GRAPH

_CODE = Path(__file__).with_name("pyfunc_model.py")
_PACKAGES = ("mlflow", "numpy", "onnxruntime", "pandas", "tokenizers")
_EXAMPLES = ["I love this product!", "This is terrible."]


@contextmanager
def mlflow_model(directory: Path) -> Iterator[Path]:
    """Write the bundle in `directory` as a model of MLflow, inside it, for the time of the block.

    Raises:
        OSError: the disk refuses it.
    """
    written = directory / "mlflow"
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # about the type hints of MLflow's own code
            _write(directory, written)
        yield written
    finally:
        shutil.rmtree(written, ignore_errors=True)


def _write(bundle: Path, target: Path) -> None:
    # The import takes seconds, and nothing else of the export needs it.
    import mlflow.pyfunc
    from mlflow.models import ModelSignature
    from mlflow.types import ColSpec, DataType, Schema, TensorSpec

    outputs: list[ColSpec | TensorSpec] = [ColSpec(DataType.string, "label"), ColSpec(DataType.float, "score")]
    outputs += [ColSpec(DataType.float, f"probability_{label}") for label in Bundle.load(bundle).labels]
    mlflow.pyfunc.save_model(
        target,
        python_model=str(_CODE),
        artifacts={name: str(bundle / name) for name in (FLOAT_GRAPH, TOKENIZER, DESCRIPTION)},
        signature=ModelSignature(Schema([ColSpec(DataType.string, "text")]), Schema(outputs)),
        input_example=pd.DataFrame({"text": _EXAMPLES}),
        pip_requirements=[f"{name}=={version(name)}" for name in _PACKAGES],
    )
