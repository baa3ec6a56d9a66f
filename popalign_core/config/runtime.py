"""What may differ between machines without changing a result."""

from typing import Literal, Self

from pydantic import Field, model_validator

from popalign_core.config.base import Frozen, Text


class RuntimeConfig(Frozen):
    """What may differ between machines without changing a result; never hashed."""

    root: Text = Field(default="artifacts", description="store root: a folder or any fsspec URL")
    device: Text = Field(default="auto", description="auto, cpu, cuda, cuda:1, mps")
    batch_size: int = Field(
        default=32, ge=1, description="images a batch, at most: sampling takes fewer where memory does not hold them"
    )
    n_threads: int = Field(default=0, ge=0, description="torch threads; 0 takes all cores, of a worker its share")
    shard_size: int = Field(default=128, ge=1, description="images a resumable shard")
    scratch: Text | None = Field(default=None, description="local folder for building; default beside the root")
    n_processes: int = Field(default=1, ge=1, description="of training; more than 1 goes through `accelerate launch`")
    accelerate_config: Text | None = Field(
        default=None, description="for `accelerate launch`: ddp, fsdp2, zero2, or a file of its own"
    )
    micro_pairs: int = Field(default=0, ge=0, description="training pairs a forward and process; 0 takes all at once")
    gradient_checkpointing: bool = Field(default=False, description="less memory for about a third more time")
    compile: bool = Field(default=False, description="torch.compile of the denoiser's repeated blocks")
    channels_last: bool | Literal["auto"] = Field(
        default="auto",
        description="sampling: memory layout of convolutions; auto takes the layout, the smaller batch and the "
        "compilation that `popalign plan --measure` found to be faster here, and without that true",
    )
    fuse_qkv: bool = Field(default=False, description="sampling: one projection in place of three")
    offload: bool = Field(default=False, description="sampling: on the GPU only what is at work, for small cards")
    keep_checkpoints: int = Field(default=2, ge=1, description="training checkpoints kept, the newest")
    trackers: tuple[Literal["tensorboard", "wandb"], ...] = ("tensorboard",)
    log_folder: Text | None = Field(
        default=None, description="local folder the trackers write below; default logs/ below a local root, else here"
    )
    n_parallel: int = Field(
        default=0, ge=0, description="stages of a run side by side; 0 takes one a GPU, and on a CPU one after the other"
    )
    runner: Literal["inline", "threads", "processes", "ray", "dask"] = Field(
        default="inline", description="what samples, reads and scores the shards of images"
    )
    n_workers: int = Field(default=1, ge=1, description="of the runner; on one machine, at best one a GPU")
    runner_address: Text | None = Field(
        default=None, description="of a running Ray or Dask cluster; None starts one on this machine"
    )
    pages_url: Text = Field(
        default="http://127.0.0.1:8710", description="where `popalign serve` shows the store, for links in Prefect"
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.runner == "inline" and self.n_workers > 1:
            raise ValueError(
                f"n_workers is {self.n_workers}, but runner 'inline' has one; set runner to processes, ray or dask"
            )
        if self.runner == "threads" and self.n_workers > 1 and self.offload:
            raise ValueError("offload moves one model to and fro, which threads would share; set runner to processes")
        if self.runner_address is not None and self.runner not in ("ray", "dask"):
            raise ValueError(
                f"runner_address {self.runner_address!r} is for the runners ray and dask, not {self.runner!r}; "
                "leave it out or change runner"
            )
        if not self.pages_url.startswith(("http://", "https://")):
            raise ValueError(f"pages_url {self.pages_url!r} is no address of a server; write it as http://HOST:PORT")
        return self
