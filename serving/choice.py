"""Chooses what runs a version on this machine, among what was proven when it was exported."""

from dataclasses import dataclass

from errors import PipelineError
from serving.bundle import Bundle
from serving.processor import arithmetic
from serving.runtime import FLOAT32, INT8, ONNXRUNTIME, OPENVINO, Variant, float_variants, has_cuda

AUTO = "auto"


@dataclass(frozen=True)
class Wanted:
    """What the settings allow to run a version."""

    runtime: str = AUTO
    precision: str = AUTO

    def allows(self, variant: Variant) -> bool:
        """Whether a variant fits."""
        return self.runtime in (AUTO, variant.runtime) and self.precision in (AUTO, variant.precision)

    def __str__(self) -> str:
        """As the settings name it."""
        return f"SENTIMENT_RUNTIME={self.runtime} with SENTIMENT_PRECISION={self.precision}"


@dataclass(frozen=True)
class Choice:
    """A variant, and why it was chosen."""

    variant: Variant
    reason: str


def choose_variant(bundle: Bundle, wanted: Wanted) -> Choice:
    """Choose the fastest variant that was proven on a processor with this one's arithmetic.

    int8 and bfloat16 round differently on processors with other instructions, so a proof holds only where they are
    the same. Where there is none, a float graph serves: float32, which agrees everywhere, unless `wanted` names
    another.

    Raises:
        PipelineError: what the settings ask for was refused, or cannot run here.
    """
    if has_cuda() and wanted.allows(cuda := Variant(ONNXRUNTIME, FLOAT32)):
        return Choice(cuda, "on the GPU")
    here = [proof for proof in bundle.proofs if proof.arithmetic == arithmetic() and wanted.allows(proof.variant)]
    proven = [proof for proof in here if not proof.refused]
    if proven:
        fastest = max(proven, key=lambda proof: proof.tokens_per_s)
        return Choice(fastest.variant, f"the fastest of {len(proven)} proven: {fastest.tokens_per_s:,.0f} tokens/s")
    refused = [f"{proof.variant} was refused: {proof.refused}" for proof in here]
    if wanted.precision == INT8:
        raise PipelineError(
            f"Version {bundle.version} has no int8 graph for this processor ({arithmetic()}). "
            f"{' '.join(refused) or 'None was proven on such a one; export again on this machine.'}"
        )
    # The first is float32 in ONNX Runtime, the reference that the others are proven against.
    floats = [*float_variants(), Variant(OPENVINO, FLOAT32)]
    unrefused = [variant for variant in floats if wanted.allows(variant) and variant not in {p.variant for p in here}]
    if not unrefused:
        raise PipelineError(f"{wanted} cannot run version {bundle.version} here. {' '.join(refused)}".strip())
    return Choice(unrefused[0], f"nothing was proven on such a processor ({arithmetic()}); export here to have more")
