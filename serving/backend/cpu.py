"""The processor's instruction sets, and the number of cores that this process may use."""

import math
import os
from functools import lru_cache
from pathlib import Path

from serving.backend.cpu_quota import cpu_quota


@lru_cache
def instruction_sets() -> frozenset[str]:
    """Return the processor's flags as Linux names them (`avx512_bf16`, `amx_tile`, …); empty on other systems."""
    try:
        cpuinfo = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace")
    except OSError:
        return frozenset()
    for line in cpuinfo.splitlines():
        if line.startswith("flags"):
            return frozenset(line.partition(":")[2].split())
    return frozenset()


_ARITHMETIC = ("avx2", "avx_vnni", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16")


def arithmetic() -> str:
    """Return this processor's instruction sets for int8 and bfloat16 arithmetic, separated by blanks.

    Processors with the same sets compute the same predictions from a graph, at about the same speed.
    """
    return " ".join(name for name in _ARITHMETIC if name in instruction_sets()) or "baseline"


def has_bf16() -> bool:
    """Return whether the processor multiplies bfloat16 natively, which makes it faster than float32."""
    return not instruction_sets().isdisjoint({"avx512_bf16", "amx_bf16"})


def has_vnni() -> bool:
    """Return whether the processor accumulates products of 8-bit numbers in 32 bits."""
    return not instruction_sets().isdisjoint({"avx512_vnni", "avx_vnni", "amx_int8"})


def usable_cores() -> int:
    """Return how many cores this process may use: its CPU affinity, limited by the cgroup's CPU quota; at least 1."""
    affinity = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = cpu_quota()
    return affinity if quota is None else max(1, min(affinity, math.ceil(quota)))
