"""What may differ between machines without changing a result."""

from typing import Literal, Self

from pydantic import Field, model_validator

from popalign_core.config.base import Frozen, Text


class RuntimeConfig(Frozen):
    """What may differ between machines without changing a result; never hashed."""

    root: Text = Field(default="artifacts", description="store root: a folder or any fsspec URL")
    device: Text = Field(default="auto", description="device: auto, cpu, cuda, cuda:1, mps")
    batch_size: int = Field(
        default=32, ge=1, description="largest batch of images; sampling uses fewer when memory is short"
    )
    n_threads: int = Field(default=0, ge=0, description="torch threads; 0 uses all cores, split evenly among workers")
    shard_size: int = Field(default=128, ge=1, description="images per resumable shard")
    scratch: Text | None = Field(
        default=None, description="local folder for unfinished artifacts; default: next to the root"
    )
    n_processes: int = Field(default=1, ge=1, description="training processes; more than 1 uses `accelerate launch`")
    accelerate_config: Text | None = Field(
        default=None, description="`accelerate launch`: ddp, fsdp2, zero2, or a configuration file"
    )
    micro_pairs: int = Field(
        default=0, ge=0, description="training pairs per forward pass and process; 0 takes the whole batch"
    )
    gradient_checkpointing: bool = Field(default=False, description="training: less memory for about a third more time")
    compile: bool = Field(default=False, description="torch.compile of the denoiser's repeated blocks")
    channels_last: bool | Literal["auto"] = Field(
        default="auto",
        description="sampling: memory layout of convolutions; 'auto' uses the layout, batch size and compilation that "
        "`popalign plan --measure` found fastest on this machine, and channels last without a measurement",
    )
    fuse_qkv: bool = Field(default=False, description="sampling: fuse the query, key and value projections")
    offload: bool = Field(
        default=False, description="sampling: keep only the active network on the GPU, for small cards"
    )
    keep_checkpoints: int = Field(default=2, ge=1, description="number of training checkpoints to keep")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = Field(
        default=("tensorboard",), description="experiment trackers; 'wandb' needs the extra `wandb`"
    )
    log_folder: Text | None = Field(
        default=None,
        description="local folder of the trackers' logs; default: logs/ in a local root, else the current folder",
    )
    n_parallel: int = Field(
        default=0, ge=0, description="independent stages run in parallel; 0: one per GPU, and one on a CPU"
    )
    runner: Literal["inline", "threads", "processes", "ray", "dask"] = Field(
        default="inline", description="how shards are sampled, classified and scored"
    )
    n_workers: int = Field(default=1, ge=1, description="workers of the runner; on one machine, one per GPU is best")
    runner_address: Text | None = Field(
        default=None, description="address of a running Ray or Dask cluster; default: start one on this machine"
    )
    pages_url: Text = Field(
        default="http://127.0.0.1:8710", description="address of `popalign serve`, for links in Prefect"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.runner == "inline" and self.n_workers > 1:
            raise ValueError(
                f"n_workers is {self.n_workers}, but runner 'inline' has one; set runner to processes, ray or dask"
            )
        if self.runner == "threads" and self.n_workers > 1 and self.offload:
            raise ValueError(
                "offload moves the model between devices, and threads would share it; set runner to processes"
            )
        if self.runner_address is not None and self.runner not in ("ray", "dask"):
            raise ValueError(
                f"runner_address {self.runner_address!r} is for the runners ray and dask, not {self.runner!r}; "
                "leave it out or change runner"
            )
        if not self.pages_url.startswith(("http://", "https://")):
            raise ValueError(
                f"pages_url {self.pages_url!r} is not the address of a server; write it as http://HOST:PORT"
            )
        return self
