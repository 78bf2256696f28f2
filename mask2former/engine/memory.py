"""How much memory this process has held at most."""

import sys
from pathlib import Path


def peak_resident_memory() -> int | None:
    """Largest resident set so far, in bytes; None where the system does not say."""
    status = Path("/proc/self/status")
    if sys.platform == "linux" and status.exists():  # there ru_maxrss counts the process that started this one too
        lines = status.read_text(encoding="utf-8").splitlines()
        if line := next((line for line in lines if line.startswith("VmHWM:")), None):
            return int(line.split()[1]) * 1024
    try:
        import resource
    except ImportError:  # Windows has none
        return None
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * (1 if sys.platform == "darwin" else 1024)
