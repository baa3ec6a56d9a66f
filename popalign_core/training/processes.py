"""What one process among several needs: its accelerator, and whole tensors out of shards and back."""

import os
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from popalign_core.config import RuntimeConfig
from popalign_core.errors import ConfigError
from popalign_core.models.loading import resolve_device
from popalign_core.training.settings_check import check_trackers


def make_accelerator(runtime: RuntimeConfig, dtype: torch.dtype, log_folder: Path) -> Any:
    """The accelerator of this process: the launcher's when there is one, else of `runtime.device`.

    Raises:
        ConfigError: For float16 on a CPU, or when a tracker is not installed.
    """
    from accelerate import Accelerator

    device = resolve_device(runtime.device)
    if dtype == torch.float16 and device.type == "cpu":
        raise ConfigError("a float16 model trains on a GPU only (its gradients are scaled); use bfloat16 or float32")
    if device.type == "cuda" and "LOCAL_RANK" not in os.environ and device.index is not None:
        torch.cuda.set_device(device)
    if "wandb" in runtime.trackers and not os.environ.get("WANDB_API_KEY"):
        # without an account W&B would ask for one and wait
        os.environ.setdefault("WANDB_MODE", "offline")
    check_trackers(runtime)
    return Accelerator(
        cpu=device.type == "cpu",
        mixed_precision="fp16" if dtype == torch.float16 else "no",
        log_with=list(runtime.trackers) or None,
        project_dir=str(log_folder),
    )


def mean_over_processes(accelerator: Any, flag: bool) -> float:
    """Share of the processes where a flag is set; all learn the same."""
    return float(accelerator.reduce(torch.tensor(float(flag), device=accelerator.device), reduction="mean"))


def full_tensor(value: Any) -> Any:
    """A sharded tensor (FSDP2's) as a whole; everything else as it is. All processes must call it."""
    return value.full_tensor() if hasattr(value, "full_tensor") else value


def shard_like(value: Any, weight: Any) -> Any:
    """The part of a whole tensor that this process keeps of `weight`; everything that is not sharded as it is."""
    if not isinstance(value, Tensor) or not hasattr(weight, "device_mesh") or value.shape != weight.shape:
        return value
    if hasattr(value, "device_mesh"):
        return value
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(value.to(weight.device), weight.device_mesh, weight.placements)
