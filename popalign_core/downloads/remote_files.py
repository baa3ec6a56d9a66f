"""The files behind a source: addresses, sizes, digests, and where each goes. Asks servers, and downloads nothing."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from huggingface_hub import HfApi, constants, get_hf_file_metadata, hf_hub_url
from huggingface_hub.utils import build_hf_headers, get_session, hf_raise_for_status

from popalign_core.downloads.download_errors import keep_trying
from popalign_core.downloads.file_choice import choose_files
from popalign_core.downloads.licenses import License, license_of
from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.sources import HubFiles, Source, WebFile

FILES_ENDPOINT = "POPALIGN_FILES_ENDPOINT"
"""Variable with the address of a mirror: takes the place of scheme and host of every address outside the hub."""
PART = ".part"
"""How the names of unfinished files and folders end."""
_TIMEOUT_S = 30.0
_SHA256_DIGITS = 64
_NO_HEAD = (403, 405, 501)
"""How hosts refuse to be asked for a size alone; addresses that are signed for a download say 403."""


@dataclass(frozen=True)
class RemoteFile:
    """One file that is to be fetched.

    Attributes:
        source: What it is part of.
        name: In its repository; of an address, the file's own.
        url: Where its bytes are.
        place: Where its bytes go.
        size: Bytes; None when the server does not say.
        digest: Its kind, `sha256` or `git-sha1`, and its value, as the server or a table says; None when nobody does.
        in_cache: Whether the hub's cache gets a link to it.
    """

    source: Source
    name: str
    url: str
    place: Path
    size: int | None
    digest: tuple[str, str] | None
    in_cache: bool = False

    @property
    def origin(self) -> str:
        """Where it comes from, whatever mirror it came by."""
        return f"{self.source.repo}/{self.name}" if isinstance(self.source, HubFiles) else self.source.url

    @property
    def noted_as(self) -> str:
        """Its name in the record beside it."""
        if self.source.place is None or isinstance(self.source, WebFile) or self.source.kind == "file":
            return self.place.name
        return f"{self.source.place.name}/{_name_inside(self.source, self.name)}"


@dataclass(frozen=True)
class Listing:
    """All files of a source.

    Attributes:
        source: Of which.
        files: Each.
        license: What may be done with them.
        commit: Of the repository; "" for an address.
        staging: The folder they are gathered in until all are there; None where each is ready by itself.
    """

    source: Source
    files: tuple[RemoteFile, ...]
    license: License
    commit: str = ""
    staging: Path | None = None


def list_source(source: Source) -> Listing:
    """What there is to fetch of a source.

    Raises:
        PopAlignError: That says what is wrong: the name, the token, the network, the server.
    """
    return _list_hub(source) if isinstance(source, HubFiles) else _list_web(source)


def home_of(source: Source) -> Path:
    """The folder that a source is fetched into, and that keeps the record of what came from it."""
    return source.place.parent if source.place is not None else Path(constants.HF_HUB_CACHE)


def lock_of(source: Source) -> Path:
    """The folder whose lock a process holds that fetches a source; the hub's cache keeps locks apart."""
    return home_of(source) / ".locks" if source.place is None else home_of(source)


def ask_headers(source: Source) -> dict[str, str]:
    """Of a request: the token goes to the hub alone, and nothing is to be compressed, or it could not be resumed."""
    own = build_hf_headers(library_name="popalign") if isinstance(source, HubFiles) else {}
    return own | {"Accept-Encoding": "identity"}


def check_answer(source: Source, response: Any) -> None:
    """Raise the client's own error for a status that says no."""
    if isinstance(source, HubFiles):
        hf_raise_for_status(response)
    else:
        response.raise_for_status()


def _list_hub(source: HubFiles) -> Listing:
    info: Any = keep_trying(
        lambda: HfApi().model_info(source.repo, revision=source.revision, files_metadata=True, timeout=_TIMEOUT_S),
        source,
    )
    siblings = {each.rfilename: each for each in info.siblings or ()}
    if info.gated:
        keep_trying(lambda: HfApi().auth_check(source.repo), source)
    index = _read_index(source, siblings) if source.kind == "pipeline" else {}
    staging = _staging(source)
    files = tuple(
        _hub_file(source, siblings[name], info.sha, staging) for name in choose_files(source, siblings.keys(), index)
    )
    card: Any = info.card_data
    return Listing(source, files, license_of(source, getattr(card, "license", None)), info.sha, staging)


def _read_index(source: HubFiles, names: Mapping[str, Any]) -> dict[str, Any]:
    """The pipeline's parts: a kilobyte that is looked at and not kept."""
    if "model_index.json" not in names:
        raise MissingWeightsError(
            f"{source.repo}@{source.revision} is not a diffusers pipeline: it has no model_index.json; give another "
            "model.name"
        )
    url = hf_hub_url(source.repo, "model_index.json", revision=source.revision)

    def ask() -> bytes:
        response = get_session().get(url, headers=ask_headers(source), timeout=_TIMEOUT_S)
        check_answer(source, response)
        return bytes(response.content)

    try:
        index = json.loads(keep_trying(ask, source))
    except ValueError as error:
        raise MissingWeightsError(f"{source.repo}: model_index.json is not JSON ({error}); give another") from error
    return index if isinstance(index, dict) else {}


def _staging(source: HubFiles) -> Path | None:
    """A folder that is not there yet gets its name when it is whole: many take a folder for whole when it is there."""
    if source.place is None or source.kind == "file" or source.place.exists():
        return None
    return source.place.with_name(source.place.name + PART)


def _hub_file(source: HubFiles, sibling: Any, commit: str, staging: Path | None) -> RemoteFile:
    name = sibling.rfilename
    url = hf_hub_url(source.repo, name, revision=commit)
    size, digest = _size_and_digest(source, sibling, url)
    if source.place is None:
        folder = Path(constants.HF_HUB_CACHE) / ("models--" + source.repo.replace("/", "--"))
        place = folder / "blobs" / digest[1]
    elif source.kind == "file":
        place = source.place
    else:
        place = (staging or source.place) / _name_inside(source, name)
    return RemoteFile(source, name, url, place, size, digest, in_cache=source.place is None)


def _size_and_digest(source: HubFiles, sibling: Any, url: str) -> tuple[int | None, tuple[str, str]]:
    """As the listing has them; a mirror whose listings are names alone is asked file by file."""
    if sibling.lfs is not None:
        return sibling.lfs.size, ("sha256", str(sibling.lfs.sha256))
    if sibling.blob_id is not None:
        return sibling.size, ("git-sha1", str(sibling.blob_id))
    told = keep_trying(lambda: get_hf_file_metadata(url, timeout=_TIMEOUT_S), source)
    etag = str(told.etag)
    return told.size, ("sha256" if len(etag) == _SHA256_DIGITS else "git-sha1", etag)


def _name_inside(source: HubFiles, name: str) -> str:
    return name.removeprefix(f"{source.inside}/") if source.inside else name


def _list_web(source: WebFile) -> Listing:
    url = mirrored(source.url)

    def ask() -> int | None:
        response = get_session().head(url, headers=ask_headers(source), timeout=_TIMEOUT_S)
        if response.status_code in _NO_HEAD:
            return None  # the download will tell
        response.raise_for_status()
        length = response.headers.get("Content-Length", "")
        return int(length) if length.isdigit() else None

    digest = None if source.sha256 is None else ("sha256", source.sha256)
    file = RemoteFile(source, source.place.name, url, source.place, keep_trying(ask, source), digest)
    return Listing(source, (file,), license_of(source))


def mirrored(url: str) -> str:
    """An address, at the mirror that `POPALIGN_FILES_ENDPOINT` names if it is set.

    Raises:
        ConfigError: When what it names is no address.
    """
    mirror = os.environ.get(FILES_ENDPOINT, "").strip().rstrip("/")
    if not mirror:
        return url
    at = urlsplit(mirror)
    if at.scheme not in ("http", "https") or not at.netloc:
        raise ConfigError(f"${FILES_ENDPOINT} is {mirror!r}; write an address such as https://mirror.example")
    return mirror + url.removeprefix(f"{urlsplit(url).scheme}://{urlsplit(url).netloc}")


def links_of(listing: Listing) -> Iterator[RemoteFile]:
    """The files whose bytes lie in the hub's cache without a name there."""
    for file in listing.files:
        if file.in_cache:
            link = file.place.parents[1] / "snapshots" / listing.commit / file.name
            if not link.exists() or link.resolve() != file.place.resolve():
                yield file
