"""What the tests of workers share."""

import multiprocessing
from collections.abc import Iterator

import pytest

IMPORTED = [
    "prefect.task_runners",
    "diffusers.pipelines.stable_diffusion_xl.pipeline_stable_diffusion_xl",
    "transformers.models.clip.modeling_clip",
]


@pytest.fixture(scope="module", autouse=True)
def home(prefect_database: None, tmp_path_factory: pytest.TempPathFactory) -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HOME", str(tmp_path_factory.mktemp("home")))  # Ray writes a token there
        yield


@pytest.fixture
def forked_workers(monkeypatch: pytest.MonkeyPatch) -> None:
    """A pool's workers are forked off a process that has imported what any of them needs.

    There is one such process for all pools, and it imports when it starts: all tests name the same modules.
    """
    multiprocessing.set_forkserver_preload(IMPORTED)
    original = multiprocessing.get_context
    monkeypatch.setattr(
        multiprocessing, "get_context", lambda how=None: original("forkserver" if how == "spawn" else how)
    )
