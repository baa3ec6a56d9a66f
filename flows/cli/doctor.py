"""What is installed, which weights are where, which device, whether store and server answer."""

import os
from collections.abc import Iterator
from dataclasses import dataclass
from importlib import metadata
from pathlib import Path

from popalign_core.errors import ConfigError, MissingWeightsError, ServiceError, StoreError

REQUIRED = ("torch", "diffusers", "transformers", "peft", "deepface", "openai", "pyarrow", "pandas", "prefect")
EXTRAS = {"open_clip_torch": "clip", "s3fs": "s3", "prefect-dask": "dask", "prefect-ray": "ray"}
DEEPFACE_FILES = ("gender_model_weights.pth", "race_model_single_batch.pth")


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        subject: What was looked at.
        detail: What was found, and what to do if it is missing.
        exit_code: 0 when fine or optional; else what `popalign doctor` exits with.
    """

    subject: str
    detail: str
    exit_code: int = 0


def examine(root: str) -> Iterator[Finding]:
    """Look at everything a run with the store at `root` would need, and at what is optional."""
    yield from _packages()
    yield _device()
    yield from _weights()
    yield from _scorers()
    yield _store(root)
    yield _prefect()


def _packages() -> Iterator[Finding]:
    for name in REQUIRED:
        version = _version(name)
        yield Finding(name, version or "missing; run `make setup`, or pip install popalign", 0 if version else 1)
    for name, extra in EXTRAS.items():
        yield Finding(name, _version(name) or f"not installed, optional: pip install 'popalign[{extra}]'")


def _version(name: str) -> str | None:
    try:
        return metadata.version(name)
    except metadata.PackageNotFoundError:
        return None


def _device() -> Finding:
    import torch

    if torch.cuda.is_available():
        return Finding("device", f"cuda: {torch.cuda.get_device_name()}, {torch.cuda.device_count()} device(s)")
    if torch.backends.mps.is_available():
        return Finding("device", "mps")
    return Finding("device", f"cpu, {torch.get_num_threads()} thread(s); torch has no GPU to use")


def _weights() -> Iterator[Finding]:
    from popalign_core.portraits import weights_folder

    try:
        yield Finding("embedded model", str(weights_folder()))
    except MissingWeightsError as error:
        yield Finding("embedded model", str(error), error.exit_code)
    home = Path(os.environ.get("DEEPFACE_HOME", str(Path.home()))) / ".deepface" / "weights"
    for name in DEEPFACE_FILES:
        there = (home / name).is_file()
        yield Finding(
            f"deepface {name}", str(home / name) if there else f"not at {home}, optional: classifier 'deepface'"
        )


def _scorers() -> Iterator[Finding]:
    """The presets' scorers, whose files are looked for below the folder the program is started in."""
    from popalign_core.config.presets import PUBLIC_SCORERS
    from popalign_core.evaluation.quality.scorer_files import require, weights_of

    for name, settings in PUBLIC_SCORERS.items():
        try:
            places = ", ".join(str(require(path).absolute()) for path in weights_of(settings))
            yield Finding(f"scorer {name}", places)
        except MissingWeightsError as error:
            yield Finding(f"scorer {name}", f"optional: {error}")


def _store(root: str) -> Finding:
    from storage.store import Store

    try:
        store = Store(root)
        store.check_writable()
    except StoreError as error:
        return Finding("store", str(error), error.exit_code)
    return Finding("store", f"{store.root} can be written")


def _prefect() -> Finding:
    from tasks.workers.prefect_server import check_server, server_url

    try:
        url = server_url()
        if url is None:
            return Finding("prefect server", "PREFECT_API_URL is not set; `popalign run` needs no server")
        check_server()
    except (ConfigError, ServiceError) as error:
        return Finding("prefect server", str(error), error.exit_code)
    return Finding("prefect server", f"{url} answers")
