"""What is installed, which weights are where, which device, whether store and server answer."""

import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib import import_module, metadata
from importlib.util import find_spec
from pathlib import Path
from typing import Any, Self

from packaging.requirements import Requirement

from flows.plan.preflight import free_bytes, nearest_folder
from popalign_core.attributes.deepface_files import HEAD_WEIGHTS, require_weights
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError, MissingWeightsError, PopAlignError, ServiceError, StoreError
from popalign_core.machine import describe_machine
from popalign_core.models.torchvision_operators import is_other_build, torchvision_build
from tasks.common.kept_speeds import kept_file, read_kept

REQUIRED = ("torch", "diffusers", "transformers", "peft", "deepface", "openai", "pyarrow", "pandas", "prefect")
EXTRAS = {"s3fs": "s3", "prefect-dask": "dask", "prefect-ray": "ray"}

HPSV2_WORDS = "bpe_simple_vocab_16e6.txt.gz"
"""The vocabulary that hpsv2 reads when it is imported."""


@dataclass(frozen=True)
class Finding:
    """One thing looked at.

    Attributes:
        subject: What was looked at.
        detail: What was found, or what is missing and how to get it.
        exit_code: 0 when there or optional; else what `popalign doctor` exits with.
        is_there: Whether it was found.
    """

    subject: str
    detail: str
    exit_code: int = 0
    is_there: bool = True

    @classmethod
    def of_error(cls, subject: str, error: PopAlignError, *, is_optional: bool = False) -> Self:
        """What an error says is missing."""
        said = f"optional: {error}" if is_optional else str(error)
        return cls(subject, said, 0 if is_optional else error.exit_code, is_there=False)


def examine(root: str) -> Iterator[Finding]:
    """Look at everything a run with the store at `root` would need, and at what is optional. Makes nothing."""
    yield from _packages()
    yield from _clip_packages()
    yield _device()
    yield from _speeds()
    yield from _weights()
    yield from _scorers()
    yield _store(root)
    yield _prefect()


def examine_needs(config: PipelineConfig, runtime: RuntimeConfig) -> Iterator[Finding]:
    """Look at all that a run of a configuration needs, whatever of it is in the store already. Makes nothing."""
    from flows.plan.preflight import list_needs
    from flows.plan.steps import PIPELINE

    yield _device()
    for need in list_needs(PIPELINE, config, runtime):
        try:
            yield Finding(need.what, str(need.find()))
        except PopAlignError as error:
            yield Finding.of_error(need.what, error, is_optional=need.is_optional)
    yield _store(runtime.root)


def _packages() -> Iterator[Finding]:
    for name in REQUIRED:
        version = _version(name)
        missing = Finding(name, "run `make setup`, or pip install popalign", 1, is_there=False)
        yield Finding(name, version) if version else missing
    for name, extra in EXTRAS.items():
        version = _version(name)
        missing = Finding(name, f"optional: pip install 'popalign[{extra}]'", is_there=False)
        yield Finding(name, version) if version else missing


def _clip_packages() -> Iterator[Finding]:
    """open_clip and hpsv2 are optional; a torchvision that does not load takes transformers and diffusers with it."""
    build, is_whole = torchvision_build(), True
    if build is not None:
        vision = _torchvision(build)
        is_whole = vision.is_there
        yield vision
    for name, extra in (("open_clip_torch", "clip"), ("hpsv2", "hps")):
        version = _version(name)
        if version is None:
            yield Finding(name, f"optional: pip install 'popalign[{extra}]', see docs/install.md", is_there=False)
            continue
        # hpsv2's own pins are known to be too narrow
        problems = _unmet(name) if name == "open_clip_torch" else _lacks_of_hpsv2()
        problems = [*problems, *([] if is_whole else ["torchvision does not work, see there"])]
        if problems:
            yield Finding(name, f"optional: {version} does not work: {'; '.join(problems)}", is_there=False)
        else:
            yield Finding(name, version)


def _torchvision(build: str) -> Finding:
    """Whether it is one for the torch that is here: by what it asks for, and by loading it."""
    fix = "install it from where torch came (see docs/install.md), or uninstall it"
    here, problems = f"torch {_version('torch')}", _unmet("torchvision")
    if not problems:
        try:
            import_module("torchvision")
        except (ImportError, RuntimeError, OSError) as error:
            problems = [f"it does not load beside {here} ({str(error).splitlines()[0]})"]
    if problems:
        said = f"{build}: {'; '.join(problems)}. transformers and diffusers fail with it; {fix}"
        return Finding("torchvision", said, 1, is_there=False)
    if is_other_build():
        said = f"{build}, which is no build for {here}: it loads, but cannot decode images or suppress boxes; {fix}"
        return Finding("torchvision", said)
    return Finding("torchvision", build)


def _unmet(name: str) -> list[str]:
    """What an installed package asks for and does not have."""
    wanted = [Requirement(line) for line in metadata.requires(name) or ()]
    asked = [each for each in wanted if each.marker is None or each.marker.evaluate({"extra": ""})]
    here = {each.name: _version(each.name) for each in asked}
    return [
        f"it needs {each.name}{each.specifier}, and {here[each.name] or 'none'} is installed"
        for each in asked
        if not (version := here[each.name]) or not each.specifier.contains(version, prereleases=True)
    ]


def _lacks_of_hpsv2() -> list[str]:
    package = find_spec("hpsv2")
    folder = Path(package.origin).parent if package is not None and package.origin else Path()
    lacking = [f"there is no package {name}" for name in ("open_clip", "clint", "tkinter") if find_spec(name) is None]
    if not (folder / "src" / "open_clip" / HPSV2_WORDS).is_file():
        lacking.append(f"its wheel lacks {HPSV2_WORDS}; copy open_clip's, see docs/install.md")
    return lacking


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


def _speeds() -> Iterator[Finding]:
    """How many rates are known here, and in which layout each model samples fastest."""
    kept, here = read_kept(), describe_machine("auto", 0)
    n_rates = sum(_is_here(entry["about"], here) for entry in kept["rates"].values())
    if n_rates:
        yield Finding("rates", f"{n_rates} of this machine in {kept_file()}")
    else:
        advice = "optional: a run keeps them, and so does `popalign plan --measure`"
        yield Finding("rates", advice, is_there=False)
    for entry in kept["layouts"].values():
        about, found = entry["about"], entry["value"]
        if _is_here(about, here):
            layout = f"channels_last={str(found['channels_last']).lower()}, batches of {found['batch_size']}"
            compiled = ", compiled" if found["compile"] else ""
            width, height = about["size"]
            yield Finding(
                f"fastest layout, {width} x {height} px",
                f"{layout}{compiled}: {found['gain']:.2f} times the default, {about['model'][0]}, "
                f"{about['machine']['threads']} thread(s), batch_size {about['batch_size']}",
            )


def _is_here(about: Mapping[str, Any], here: Mapping[str, str | int]) -> bool:
    """Whether something was measured on this machine, with whatever number of threads and on whichever device."""
    return all(about["machine"].get(name) == here[name] for name in ("cpu", "instructions"))


def _weights() -> Iterator[Finding]:
    from popalign_core.portraits import weights_folder

    try:
        yield Finding("embedded model", str(weights_folder()))
    except MissingWeightsError as error:
        yield Finding.of_error("embedded model", error)
    for file, url in HEAD_WEIGHTS.values():
        try:
            yield Finding(f"DeepFace {file}", str(require_weights(file, url)))
        except MissingWeightsError as error:
            yield Finding.of_error(f"DeepFace {file}", error, is_optional=True)


def _scorers() -> Iterator[Finding]:
    """The presets' scorers, whose files are looked for below the folder the program is started in."""
    from popalign_core.config.presets import PUBLIC_SCORERS
    from popalign_core.evaluation.quality.scorer_files import require, weights_of

    for name, settings in PUBLIC_SCORERS.items():
        try:
            places = ", ".join(str(require(path).absolute()) for path in weights_of(settings))
            yield Finding(f"scorer {name}", places)
        except MissingWeightsError as error:
            yield Finding.of_error(f"scorer {name}", error, is_optional=True)


def _store(root: str) -> Finding:
    from storage.store import Store

    if "://" not in root and not Path(root).exists():
        folder = nearest_folder(Path(root))
        if not (folder.is_dir() and os.access(folder, os.W_OK)):
            why = "it cannot be written" if folder.is_dir() else "it is no folder"
            return Finding("store", f"{root} cannot be made in {folder}: {why}", StoreError.exit_code, is_there=False)
        return Finding("store", f"{root} is not there yet; a run makes it in {folder}, {_room(folder)}")
    try:
        store = Store(root, create=False)
        store.check_writable()
    except StoreError as error:
        return Finding.of_error("store", error)
    room = "" if "://" in root else f", {_room(Path(root))}"
    return Finding("store", f"{store.root} can be written{room}")


def _room(folder: Path) -> str:
    return f"{free_bytes(folder) / 2**30:.0f} GiB free"


def _prefect() -> Finding:
    from tasks.workers.prefect_server import check_server, server_url

    try:
        url = server_url()
        if url is None:
            return Finding("prefect server", "PREFECT_API_URL is not set; `popalign run` needs no server")
        check_server()
    except (ConfigError, ServiceError) as error:
        return Finding.of_error("prefect server", error)
    return Finding("prefect server", f"{url} answers")
