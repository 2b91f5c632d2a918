"""Describes the machine and the library versions of a benchmark run."""

import importlib.metadata
import os
import platform
import re
import time
from pathlib import Path
from typing import Any

from serving.backend.cpu import instruction_sets, usable_cores

_TELLING = ("avx2", "avx512f", "avx512_vnni", "avx_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8")
"""Instruction sets that determine how fast a graph runs."""
_LIBRARIES = ("onnxruntime", "openvino", "nncf", "tokenizers", "torch", "transformers", "uvicorn", "litserve")


def describe_machine() -> dict[str, Any]:
    """Return the processor, its instruction sets, the machine's load before the run, and library versions."""
    sets = instruction_sets()
    return {
        "processor": _processor(),
        "cores": usable_cores(),
        "memory_gib": round(os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES") / 2**30, 1),
        "instruction_sets": [name for name in _TELLING if name in sets],
        "system": f"{platform.system()} {platform.release()}",
        "load_before": round(os.getloadavg()[0], 2),
        "date": time.strftime("%Y-%m-%d %H:%M %Z"),
        "versions": {"python": platform.python_version(), **_installed()},
    }


def _processor() -> str:
    found = re.search(r"^model name\s*:\s*(.*)$", Path("/proc/cpuinfo").read_text(errors="replace"), re.MULTILINE)
    return found[1] if found else platform.machine()


def _installed() -> dict[str, str]:
    versions = {}
    for name in _LIBRARIES:
        try:
            versions[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            continue
    return versions
