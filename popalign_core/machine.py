"""What of this machine decides how fast a model runs, and the folder where such knowledge is kept. Imports no torch."""

import os
import platform
import subprocess
from contextlib import suppress
from functools import cache
from pathlib import Path

_INSTRUCTION_SETS = ("amx_tile", "avx512_bf16", "avx512_vnni", "avx512f", "avx2", "sse4_1", "sve", "asimd")
"""Names of the flags of Linux that torch and oneDNN choose their kernels by."""
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA", "ATEN_CPU_CAPABILITY")
"""Variables that hold torch to older instructions."""


def cache_folder() -> Path:
    """Where this user's machine keeps what is quick to lose and slow to find: $POPALIGN_CACHE or ~/.cache/popalign."""
    return Path(os.environ.get("POPALIGN_CACHE") or Path.home() / ".cache" / "popalign")


def describe_machine(device: str, n_threads: int) -> dict[str, str | int]:
    """What decides speed here: equal on equal machines.

    Args:
        device: As `runtime.device` names it; a GPU is looked for unless it is the CPU.
        n_threads: As `runtime.n_threads`: 0 takes OMP_NUM_THREADS, or all cores.
    """
    model, flags = _processor()
    limits = {name: value for name in _LIMITS if (value := os.environ.get(name))}
    return {
        "cpu": model,
        "instructions": " ".join(name for name in _INSTRUCTION_SETS if name in flags),
        "threads": n_threads or _default_threads(),
        "gpu": "" if device == "cpu" else gpu_name(),
        **limits,
    }


def _default_threads() -> int:
    asked = os.environ.get("OMP_NUM_THREADS", "")
    if asked.isdigit() and int(asked) > 0:
        return int(asked)
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


@cache
def _processor() -> tuple[str, frozenset[str]]:
    """Name and flags of the processor."""
    facts: dict[str, str] = {}
    with suppress(OSError):
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            name, _, value = line.partition(":")
            facts.setdefault(name.strip(), value.strip())
    flags = facts.get("flags") or facts.get("Features") or ""
    return facts.get("model name") or platform.processor() or platform.machine(), frozenset(flags.split())


@cache
def gpu_name() -> str:
    """The first NVIDIA GPU's name, or Apple's; '' without one."""
    if platform.system() == "Darwin" and platform.machine() == "arm64":
        return "Apple"
    command = ["nvidia-smi", "--query-gpu=name", "--format=csv,noheader"]
    with suppress(OSError, subprocess.SubprocessError):
        answer = subprocess.run(command, capture_output=True, text=True, timeout=10, check=True)
        return answer.stdout.partition("\n")[0].strip()
    return ""
