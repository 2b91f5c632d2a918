"""Names the machine and the versions that the figures hold for."""

import importlib.metadata
import os
import platform
import time
from pathlib import Path
from typing import Any

from serving.processor import instruction_sets, usable_cores

_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
"""The instruction sets that decide how fast a graph runs."""
_LIBRARIES = (
    "onnxruntime",
    "openvino",
    "nncf",
    "tokenizers",
    "torch",
    "transformers",
    "fastapi",
    "uvicorn",
    "litserve",
    "tritonclient",
)


def describe_machine() -> dict[str, Any]:
    """The processor, what it can do, who else uses it, and the versions of what runs on it."""
    sets = instruction_sets()
    return {
        "processor": _cpuinfo("model name") or platform.processor() or platform.machine(),
        "family": f"family {_cpuinfo('cpu family') or '?'}, model {_cpuinfo('model') or '?'}",
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instruction_sets": [name for name in _TELLING if name in sets],
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "versions": {"python": platform.python_version(), **_installed()},
    }


def _cpuinfo(key: str) -> str:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="ascii", errors="replace").splitlines()
    except OSError:
        return ""
    return next((line.partition(":")[2].strip() for line in lines if line.partition(":")[0].strip() == key), "")


def _installed() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
