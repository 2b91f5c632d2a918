"""Text in, probabilities out: a version's tokenizer, packing and graph in this process."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from serving.bundle import GRAPH, TOKENIZER, Bundle
from serving.packing import all_shapes, pack, rows_of_shape
from serving.runtime import load_runtime


@dataclass(frozen=True)
class Probabilities:
    """The engine's answer for a list of texts, in their order."""

    values: npt.NDArray[np.float32]
    """[texts, labels], calibrated; each row sums to 1."""
    truncated: npt.NDArray[np.bool_]
    """[texts]; whether the text was longer than the model reads, and was cut."""


class Engine:
    """One version of the model, loaded. Not for use by several threads at once."""

    def __init__(self, directory: Path, runtime: str, threads: int) -> None:
        """Load the bundle in `directory` into `runtime` with `threads` threads.

        Raises:
            PipelineError: the bundle is incomplete or the runtime unknown.
        """
        self.bundle = Bundle.load(directory)
        self.runtime = load_runtime(runtime, directory / GRAPH, threads)
        self._tokenizer = Tokenizer.from_file(str(directory / TOKENIZER))
        self._tokenizer.no_padding()
        self._tokenizer.enable_truncation(self.bundle.max_length)

    def warm_up(self) -> None:
        """Run every shape once, so that no request pays for a shape's first use."""
        for rows, length in all_shapes(self.bundle.max_length):
            self.runtime.run(rows_of_shape(rows, length, self.bundle.max_length, self.bundle.padding_token))

    def classify(self, texts: Sequence[str]) -> Probabilities:
        """Classify any number of texts; what one gets does not depend on the others."""
        encodings = self._tokenizer.encode_batch_fast(texts)
        values = np.empty((len(texts), len(self.bundle.labels)), dtype=np.float32)
        for rows in pack([encoding.ids for encoding in encodings], self.bundle.padding_token):
            values[rows.texts] = self.runtime.run(rows)[: len(rows.texts)]
        truncated = np.fromiter((bool(encoding.overflowing) for encoding in encodings), dtype=bool, count=len(texts))
        return Probabilities(values, truncated)
