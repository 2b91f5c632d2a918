"""Chooses the variant that runs a version on this machine, from those proven when the version was exported."""

from collections.abc import Sequence
from dataclasses import dataclass

from common.errors import PipelineError
from serving.backend.cpu import arithmetic
from serving.backend.runtime import float_variants, has_cuda
from serving.model_repo.bundle import Bundle, Proof
from serving.model_repo.variants import FLOAT16, FLOAT32, INT8, ONNXRUNTIME, OPENVINO, Variant

AUTO = "auto"
_ON_GPU = "cuda"


@dataclass(frozen=True)
class Wanted:
    """The runtime and precision that the settings allow."""

    runtime: str = AUTO
    precision: str = AUTO

    def allows(self, variant: Variant) -> bool:
        """Return whether the settings allow the variant."""
        return self.runtime in (AUTO, variant.runtime) and self.precision in (AUTO, variant.precision)

    def __str__(self) -> str:
        """Return the settings in their own notation."""
        return f"SENTIMENT_RUNTIME={self.runtime} with SENTIMENT_PRECISION={self.precision}"


@dataclass(frozen=True)
class Choice:
    """A variant and the reason for choosing it."""

    variant: Variant
    reason: str


def choose_variant(bundle: Bundle, wanted: Wanted) -> Choice:
    """Choose the fastest variant that was proven on a processor with the same arithmetic as this one.

    int8 and bfloat16 round differently on processors with other instruction sets, so a proof only holds for the same
    sets. Without a proof, a float graph is used: float32, which gives the same results everywhere, unless `wanted`
    names another variant. On a GPU it is float32 or a proven float16, whichever is faster. If no variant that `wanted`
    allows can be used, another proven one is. A quick first version is proven in float32 alone, and always uses that.

    Raises:
        PipelineError: no variant that `wanted` allows can be used, and no other is proven on this processor.
    """
    if bundle.quick:
        proven = (proof.variant for proof in bundle.proofs if not proof.refused)
        return Choice(next(proven, Variant(ONNXRUNTIME, FLOAT32)), "the only variant of a quick first version")
    # float32 gives the same results on all processors, so its refusal on one holds for all.
    refused_float32 = {proof.variant for proof in bundle.proofs if proof.refused and proof.precision == FLOAT32}
    tried = [proof for proof in bundle.proofs if proof.arithmetic == arithmetic_of(proof.variant)]
    if has_cuda():
        on_gpu = [Variant(ONNXRUNTIME, FLOAT16), Variant(ONNXRUNTIME, FLOAT32)]
        if choice := _fastest([proof for proof in tried if proof.variant in on_gpu and wanted.allows(proof.variant)]):
            return Choice(choice.variant, f"on the GPU, {choice.reason}")
        if wanted.allows(on_gpu[-1]) and on_gpu[-1] not in refused_float32:
            return Choice(on_gpu[-1], "on the GPU")
    here = [proof for proof in tried if wanted.allows(proof.variant)]
    if choice := _fastest(here):
        return choice
    refused = [f"{proof.variant} was refused: {proof.refused}." for proof in here]
    # The first is float32 in ONNX Runtime, the reference for the proofs of the others.
    floats = [*float_variants(), Variant(OPENVINO, FLOAT32)]
    no_more = refused_float32.union(proof.variant for proof in here)
    if unrefused := [variant for variant in floats if wanted.allows(variant) and variant not in no_more]:
        return Choice(
            unrefused[0], f"nothing was proven on such a processor ({arithmetic()}); export here to have more"
        )
    if choice := _fastest(tried):
        told = " ".join([f"{wanted} cannot be used.", *refused, f"Instead, {choice.variant} is used,"])
        return Choice(choice.variant, f"{told} {choice.reason}")
    if wanted.precision == INT8:
        raise PipelineError(
            f"Version {bundle.version} has no int8 graph for this processor ({arithmetic()}). "
            f"{' '.join(refused) or 'None was proven on such a one; export again on this machine.'}"
        )
    raise PipelineError(f"{wanted} cannot run version {bundle.version} here. {' '.join(refused)}".strip())


def arithmetic_of(variant: Variant) -> str:
    """Return what a proof of `variant` that is made on this machine holds for: this processor's arithmetic, or GPUs."""
    return _ON_GPU if variant.runtime == ONNXRUNTIME and has_cuda() else arithmetic()


def _fastest(proofs: Sequence[Proof]) -> Choice | None:
    proven = [proof for proof in proofs if not proof.refused]
    if not proven:
        return None
    fastest = max(proven, key=lambda proof: proof.tokens_per_s)
    which = f"fastest of {len(proven)} graphs that agree" if len(proven) > 1 else "only graph that agrees"
    return Choice(fastest.variant, f"the {which} with the trained model: {fastest.tokens_per_s:,.0f} tokens/s")
