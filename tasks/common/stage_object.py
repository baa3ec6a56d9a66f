"""A stage as one object, and the body that all stages share: key -> published? -> build -> validate -> publish."""

from abc import abstractmethod
from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from fnmatch import fnmatchcase
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from popalign_core.config import Frozen, PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError, PopAlignError
from storage.store import ArtifactRef, Build, Store
from tasks.common.needs import Need

if TYPE_CHECKING:
    import pandas as pd

Item = TypeVar("Item")
ModelT = TypeVar("ModelT", bound=Frozen)
Progress = Callable[[int, int], None]
"""Called with (done, total) as the work of a stage goes on."""


def no_progress(done: int, total: int) -> None:
    """Report nothing."""


class View(Frozen):
    """What a stage may read of the configuration: all of it that `fill` sees, and what its key is made of.

    What the key does not depend on is left out, or at its default: it cannot be read by mistake.
    """

    @abstractmethod
    def hashed(self) -> dict[str, Any]:
        """What goes into the key: JSON, with the digest of what lies there in place of each path.

        Raises:
            PopAlignError: When something that a path names is not there.
        """

    def unhashed(self) -> dict[str, str]:
        """Dotted fields (patterns of `fnmatch`) that may change without a change of `hashed`, each with the reason."""
        return {}


ViewT = TypeVar("ViewT", bound=View)


def keep_fields(model: ModelT, *names: str) -> ModelT:
    """The same model with all fields but these at their defaults."""
    return drop_fields(model, *(set(type(model).model_fields) - set(names)))


def drop_fields(model: ModelT, *names: str) -> ModelT:
    """The same model with these fields at their defaults."""
    fields = type(model).model_fields
    return model.model_copy(update={name: fields[name].get_default(call_default_factory=True) for name in names})


@dataclass(frozen=True)
class Inputs(Mapping[str, ArtifactRef]):
    """The artifacts that a stage takes, by name.

    Attributes:
        store: Where they are.
        refs: Name -> artifact.
    """

    store: Store
    refs: Mapping[str, ArtifactRef]

    def __getitem__(self, name: str) -> ArtifactRef:
        return self.refs[name]

    def __iter__(self) -> Iterator[str]:
        return iter(self.refs)

    def __len__(self) -> int:
        return len(self.refs)

    def read_table(self, name: str, table: str) -> "pd.DataFrame":
        """A table of an input.

        Raises:
            StoreError: When there is none, or a file is damaged.
        """
        return self.store.read_table(self.refs[name], table)


@dataclass(frozen=True)
class Request(Generic[ViewT]):
    """A stage asked for an artifact. Requests for the same artifact are equal.

    Attributes:
        payload: What the key is a hash of, for the manifest.
        stage: Who makes it.
        view: Of the configuration.
        inputs: Name -> artifact.
    """

    payload: Mapping[str, Any]
    stage: "Stage[ViewT]" = field(compare=False)
    view: ViewT = field(compare=False)
    inputs: Mapping[str, ArtifactRef] = field(compare=False)


Fill = Callable[[ViewT, Inputs, Build, RuntimeConfig, Progress], None]
"""Writes an artifact's files into the build; it finds there what an earlier, killed attempt finished."""


@dataclass(frozen=True, eq=False)
class Stage(Generic[ViewT]):
    """A stage: all that decides its artifacts.

    Attributes:
        name: Of the stage, and of its folder in the store.
        version: Bumped by hand when its output would change for the same request.
        view: From the configuration, the inputs and the stage's options to what it may read; None when there is
            nothing to do, and the first input is the answer.
        fill: Makes the artifact of the view and the inputs alone.
        inputs: Names of the artifacts it takes.
        optional: Names of further inputs it may be given; patterns of `fnmatch`.
        check: Refuses, before anything is run, what `fill` would refuse on this machine.
        needs: What `fill` needs of this machine; looked for before anything is run.
    """

    name: str
    version: str
    view: Callable[..., ViewT | None]
    fill: Fill[ViewT]
    inputs: tuple[str, ...] = ()
    optional: tuple[str, ...] = ()
    check: Callable[[ViewT, RuntimeConfig], None] | None = None
    needs: Callable[[PipelineConfig, RuntimeConfig], Iterable[Need]] = lambda config, runtime: ()

    def request(self, config: PipelineConfig, **arguments: Any) -> Request[ViewT] | ArtifactRef:
        """What is asked for; an artifact that is there already when there is nothing to do.

        Args:
            config: Of the pipeline.
            arguments: Inputs by name, and options of the stage, such as whose images are measured; None is left out.

        Raises:
            TypeError: When an input is missing or unknown.
            PopAlignError: When the configuration does not fit, or a file that it names is not there.
        """
        inputs = {name: value for name, value in arguments.items() if isinstance(value, ArtifactRef)}
        options = {name: value for name, value in arguments.items() if name not in inputs and value is not None}
        missing, known = [name for name in self.inputs if name not in inputs], (*self.inputs, *self.optional)
        unknown = [name for name in inputs if not any(fnmatchcase(name, pattern) for pattern in known)]
        if missing or unknown:
            raise TypeError(f"stage {self.name} takes the inputs {known}; missing: {missing}, unknown: {unknown}")
        view = self.view(config, inputs, **options)
        return inputs[self.inputs[0]] if view is None else self.ask(view, inputs)

    def ask(self, view: ViewT, inputs: Mapping[str, ArtifactRef]) -> Request[ViewT]:
        """A request of a view that is made already."""
        return Request(self._payload(view, inputs), self, view, inputs)

    def make(self, request: Request[ViewT], runtime: RuntimeConfig, on_progress: Progress = no_progress) -> ArtifactRef:
        """Answer a request from the store, or build the answer and publish it.

        Args:
            request: What is asked for.
            runtime: Store and machine.
            on_progress: Told how far the work is; not called on a hit.

        Returns:
            The published artifact.

        Raises:
            InputError: When a file that the configuration names has changed since the request was made.
            PopAlignError: Whatever the stage raises, with stage and key attached.
        """
        store = open_store(runtime)
        ref = reference(store, request)
        with located(ref):
            if store.is_published(ref):
                return ref
            if self._payload(request.view, request.inputs) != request.payload:
                raise InputError("a file that the configuration names changed since this run began; start it again")
            with store.build(ref, request.payload) as build:
                if not build.already_published:
                    self.fill(request.view, Inputs(store, request.inputs), build, runtime, on_progress)
                    build.validate()
        return ref

    def __call__(
        self,
        *inputs: ArtifactRef,
        config: PipelineConfig,
        runtime: RuntimeConfig,
        on_progress: Progress = no_progress,
        **arguments: Any,
    ) -> ArtifactRef:
        """Request and make in one.

        Args:
            inputs: The first ones, in the order of `Stage.inputs`.
            config: Of the pipeline.
            runtime: Store and machine.
            on_progress: Told how far the work is.
            arguments: Further inputs, and options.
        """
        names = self.inputs[: len(inputs)]
        request = self.request(config, **dict(zip(names, inputs, strict=True)), **arguments)
        return request if isinstance(request, ArtifactRef) else self.make(request, runtime, on_progress)

    def _payload(self, view: ViewT, inputs: Mapping[str, ArtifactRef]) -> dict[str, Any]:
        keys = {name: ref.key for name, ref in inputs.items()}
        return {"stage": self.name, "version": self.version, "config": view.hashed(), "inputs": keys}


def open_store(runtime: RuntimeConfig) -> Store:
    """The store of this machine's runtime configuration."""
    return Store(runtime.root, scratch=runtime.scratch)


def reference(store: Store, request: Request[Any] | ArtifactRef) -> ArtifactRef:
    """Where the answer to a request is, or will be; a stage with nothing to do requests what it was given."""
    if isinstance(request, ArtifactRef):
        return request
    return ArtifactRef(request.stage.name, store.key(**request.payload))


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
