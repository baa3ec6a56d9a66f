"""The body that every stage shares: key -> published? -> build -> validate -> publish."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any, TypeVar

from popalign_core.config import RuntimeConfig
from popalign_core.errors import InputError, PopAlignError
from storage.store import ArtifactRef, Build, Store

Item = TypeVar("Item")
Progress = Callable[[int, int], None]
"""Called with (done, total) as the work of a stage goes on."""


@dataclass(frozen=True)
class Request:
    """Everything an artifact's key depends on.

    Attributes:
        stage: Name of the stage, and of its folder in the store.
        version: The stage's VERSION, bumped by hand when its output would change.
        config: The part of the configuration that changes the result.
        inputs: Name of an input -> key of its artifact.
    """

    stage: str
    version: str
    config: Mapping[str, Any]
    inputs: Mapping[str, str]

    def payload(self) -> dict[str, Any]:
        """What the key is a hash of, for the manifest."""
        return {"stage": self.stage, "version": self.version, "config": self.config, "inputs": self.inputs}


def open_store(runtime: RuntimeConfig) -> Store:
    """The store of this machine's runtime configuration."""
    return Store(runtime.root, scratch=runtime.scratch)


def reference(store: Store, request: Request | ArtifactRef) -> ArtifactRef:
    """Where the answer to a request is, or will be; a stage with nothing to do requests what it was given."""
    if isinstance(request, ArtifactRef):
        return request
    return ArtifactRef(request.stage, store.key(request.stage, request.version, request.config, request.inputs))


def produce(request: Request, runtime: RuntimeConfig, fill: Callable[[Store, Build, ArtifactRef], None]) -> ArtifactRef:
    """Answer a request from the store, or build the answer and publish it.

    Args:
        request: What is asked for.
        runtime: Which store.
        fill: Writes the artifact's files into the build; called only on a miss. It finds what an earlier, killed
            attempt finished.

    Returns:
        The published artifact.

    Raises:
        PopAlignError: Whatever the stage raises, with stage and key attached.
    """
    store = open_store(runtime)
    ref = reference(store, request)
    with located(ref):
        if store.is_published(ref):
            return ref
        with store.build(ref, request.payload()) as build:
            if not build.already_published:
                fill(store, build, ref)
                build.validate()
    return ref


def find_published(store: Store, stage: str, key: str, *, what: str, made_by: str) -> ArtifactRef:
    """The published artifact of a key that a user gave, with or without its stage before it.

    Args:
        store: Where to look.
        stage: Whose artifact it must be.
        key: As the command that made it printed it.
        what: The stage's artifacts are, for the message.
        made_by: The command that makes one and prints its key.

    Raises:
        InputError: When there is no such artifact.
    """
    ref = ArtifactRef(stage, key.removeprefix(f"{stage}/"))
    if not store.is_published(ref):
        known = [each.key for each in store.list_artifacts() if each.stage == stage]
        raise InputError(
            f"there are no {what} {ref.key!r} in {store.root}, which has {', '.join(known) or 'none'}; "
            f"`{made_by}` makes them and prints their key"
        )
    return ref


@contextmanager
def located(ref: ArtifactRef) -> Iterator[None]:
    """Attach stage and key to the project's errors as they cross the task border."""
    try:
        yield
    except PopAlignError as error:
        error.stage = error.stage or f"{ref.stage}/{ref.key}"
        raise


def set_threads(runtime: RuntimeConfig) -> None:
    """Give torch the threads the runtime asks for; 0 leaves its default: all cores, or OMP_NUM_THREADS."""
    import torch

    if runtime.n_threads:
        torch.set_num_threads(runtime.n_threads)


def counted(items: Iterable[Item], on_progress: Progress, done: int, total: int) -> Iterator[Item]:
    """The same items; each is reported when the next one is asked for."""
    for number, item in enumerate(items, done + 1):
        yield item
        on_progress(number, total)


def no_progress(done: int, total: int) -> None:
    """Tell nobody."""
