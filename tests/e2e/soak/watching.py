"""What the pipeline's processes hold, measured again and again, and whether it grows."""

import contextlib
import os
import statistics
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil
from scipy.stats import theilslopes

from serving.host.log_file import MOST_BYTES

GATEWAY, TRITON, STUB = "gateway", "Triton", "Triton's Python"
SHARED_MEMORY = "shared memory"
MEMORY, DESCRIPTORS, THREADS, SEGMENTS, FILES = "USS, MiB", "descriptors", "threads", "segments", "files"
LOG = "log, MiB"
ALLOWED = {MEMORY: 4.0, DESCRIPTORS: 2.0, THREADS: 1.0, SEGMENTS: 1.0, FILES: 2.0, LOG: 2 * MOST_BYTES / 2**20}
"""Growth over the whole time that is none: what allocators and pools do by themselves."""
ALLOWED_SHARE = 0.03
"""The same, of the median, where that is more."""
WARM_UP_SHARE = 0.2
"""Of the time, at its beginning: caches and pools fill."""


@dataclass(frozen=True)
class Sample:
    """What was held at a time."""

    second: float
    """Since the beginning."""
    figures: dict[str, float]
    """By process and kind, as `gateway USS, MiB`."""


@dataclass(frozen=True)
class Trend:
    """How a figure changed from the end of the warm-up to the end."""

    name: str
    first: float
    last: float
    """Medians of the first and the last fifth."""
    growth: float
    """Over that time, by the median of all slopes (Sen, 1968)."""
    least_growth: float
    """The lower end of its 95 % confidence interval."""
    allowed: float

    @property
    def is_growing(self) -> bool:
        """Whether it surely grows, and by more than a little."""
        return self.growth > self.allowed and self.least_growth > 0


def measure(root: int, shared_memory_prefix: str, directory: Path) -> dict[str, float]:
    """What the pipeline whose first process is `root`, and whose files are in `directory`, holds now."""
    figures: dict[str, float] = {}
    for process in [psutil.Process(root), *psutil.Process(root).children(recursive=True)]:
        with contextlib.suppress(psutil.NoSuchProcess, psutil.AccessDenied):
            name = _name(process, root)
            if name is None:
                continue
            for kind, value in (
                (MEMORY, process.memory_full_info().uss / 2**20),
                (DESCRIPTORS, process.num_fds()),
                (THREADS, process.num_threads()),
            ):
                # Two where versions are being changed.
                figures[f"{name} {kind}"] = figures.get(f"{name} {kind}", 0.0) + value
    segments = list(Path("/dev/shm").glob(f"{shared_memory_prefix}*"))
    figures[f"{SHARED_MEMORY} {SEGMENTS}"] = len(segments)
    figures[f"{SHARED_MEMORY} MiB"] = sum(_used(segment) for segment in segments) / 2**20
    # Without what is meant to stay there: data, versions, MLflow's runs.
    figures[f"state {FILES}"] = _count(directory / "state")
    figures[f"temporary {FILES}"] = _count(directory / "tmp")
    figures[f"Triton's {LOG}"] = sum(_used(file) for file in (directory / "state" / "logs").glob("triton.log*")) / 2**20
    return figures


def by_minute(samples: Sequence[Sample]) -> list[Sample]:
    """The median of each minute, so that the seconds in which versions change do not count."""
    minutes: dict[int, list[Sample]] = {}
    for sample in samples:
        minutes.setdefault(int(sample.second // 60), []).append(sample)
    names = list(dict.fromkeys(name for sample in samples for name in sample.figures))
    return [
        Sample(
            60.0 * (minute + 0.5),
            {name: statistics.median(sample.figures.get(name, 0.0) for sample in group) for name in names},
        )
        for minute, group in sorted(minutes.items())
    ]


def trends(samples: Sequence[Sample]) -> list[Trend]:
    """How each figure changed after the warm-up."""
    minutes = by_minute(samples)
    counted = minutes[int(len(minutes) * WARM_UP_SHARE) :]
    fifth = max(1, len(counted) // 5)
    found = []
    for name in counted[0].figures:
        values = [sample.figures[name] for sample in counted]
        seconds = [sample.second for sample in counted]
        slope, _, least, _ = theilslopes(values, seconds) if len(values) > 1 else (0.0, 0.0, 0.0, 0.0)
        length = seconds[-1] - seconds[0]
        kind = next((kind for kind in ALLOWED if name.endswith(kind)), MEMORY)
        found.append(
            Trend(
                name,
                statistics.median(values[:fifth]),
                statistics.median(values[-fifth:]),
                float(slope) * length,
                float(least) * length,
                max(ALLOWED[kind], ALLOWED_SHARE * statistics.median(values)),
            )
        )
    return found


def _name(process: psutil.Process, root: int) -> str | None:
    if process.pid == root:
        return GATEWAY
    return {"tritonserver": TRITON, "triton_python_b": STUB, "triton_python_backend_stub": STUB}.get(process.name())


def _count(directory: Path) -> int:
    return sum(len(files) for _, _, files in os.walk(directory))


def _used(segment: Path) -> int:
    try:
        return segment.stat().st_blocks * 512
    except FileNotFoundError:
        return 0
