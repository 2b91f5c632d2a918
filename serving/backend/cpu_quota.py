"""The CPU quota of this process: the strictest of the Linux control groups (version 1 or 2) that contain it."""

from pathlib import Path

_PROC = Path("/proc/self")


def cpu_quota(proc: Path = _PROC) -> float | None:
    """Return how many CPUs' time the process may use, such as 1.5; None if there is no limit.

    systemd (`CPUQuota=`), Docker and Kubernetes set it on one of the groups around the process, seldom on the
    innermost. `proc` is the process's directory in `/proc`.
    """
    try:
        groups = (proc / "cgroup").read_text(encoding="utf-8").splitlines()
        mounts = (proc / "mountinfo").read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError):
        return None
    quotas: list[float] = []
    for line in groups:
        number, controllers, path = line.split(":", 2)
        is_unified = number == "0" and not controllers
        if is_unified or "cpu" in controllers.split(","):
            directory = _directory(path, mounts, is_unified)
            quotas += [] if directory is None else _quotas(*directory, is_unified)
    return min(quotas, default=None)


def _directory(path: str, mounts: list[str], is_unified: bool) -> tuple[Path, Path] | None:
    """Return the mount point of the hierarchy and the directory of the group `path`; None if it is not mounted."""
    for mount in mounts:  # "36 35 98:0 /root /mount/point options - type source super,options" (proc(5))
        fields, _, kind = mount.partition(" - ")
        _, _, _, root, point, *_ = fields.split(" ")
        type_, _, options = kind.split(" ", 2)
        if type_ == "cgroup2" if is_unified else type_ == "cgroup" and "cpu" in options.split(","):
            # In a container, only the part of the hierarchy below its own group may be mounted.
            below = path[len(root) :] if root != "/" and f"{path}/".startswith(f"{root}/") else path
            directory = Path(point) / below.strip("/")
            return Path(point), directory if directory.is_dir() else Path(point)
    return None


def _quotas(top: Path, directory: Path, is_unified: bool) -> list[float]:
    """Return the quotas of a group and all groups around it, up to the mount point."""
    found = []
    for group in (directory, *directory.parents):
        try:
            if is_unified:
                quota, period = (group / "cpu.max").read_text(encoding="ascii").split()
            else:
                quota = (group / "cpu.cfs_quota_us").read_text(encoding="ascii")
                period = (group / "cpu.cfs_period_us").read_text(encoding="ascii")
            if quota != "max" and int(quota) > 0:
                found.append(int(quota) / int(period))
        except (OSError, ValueError):
            pass  # the root group has no quota
        if group == top:
            break
    return found
