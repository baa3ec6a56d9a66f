"""Bytes from a server to a file: resumed where they stopped, checked, and put in place only when they are right."""

import os
from collections.abc import Callable
from pathlib import Path
from typing import Any

from httpx2 import RemoteProtocolError
from huggingface_hub import hf_hub_download
from huggingface_hub.utils import get_session

from popalign_core.downloads.download_errors import keep_trying
from popalign_core.downloads.file_records import RECORD_FILE, digests_of, read_record, write_record
from popalign_core.downloads.remote_files import (
    PART,
    Listing,
    RemoteFile,
    ask_headers,
    check_answer,
    home_of,
    links_of,
)
from popalign_core.errors import DamagedWeightsError
from popalign_core.sources import HubFiles

OnBytes = Callable[[int], None]
_TIMEOUT_S = 30.0
_COMPLETE = 416
"""What a server answers to who asks for bytes beyond the end."""


def fetch_listing(listing: Listing, on_bytes: OnBytes) -> None:
    """Fetch what is missing of a source. What is there already is read and kept if it is right.

    Args:
        listing: Of the source; its home is locked by the caller.
        on_bytes: Told how many bytes came; below 0, how many must come again.

    Raises:
        PopAlignError: That says what went wrong; what has come so far stays, and the same call goes on from there.
    """
    home = home_of(listing.source)
    for file in listing.files:
        sha256 = fetch_file(file, on_bytes)
        if not file.in_cache:
            write_record(home, file.noted_as, sha256, file.origin)
    if listing.staging is not None and listing.source.place is not None:
        listing.staging.rename(listing.source.place)
    for file in links_of(listing):
        _link(file)


def fetch_file(file: RemoteFile, on_bytes: OnBytes) -> str:
    """Fetch one file, or keep the right one that is there.

    Args:
        file: Which.
        on_bytes: As `fetch_listing`.

    Returns:
        Its sha256.

    Raises:
        DamagedWeightsError: When what comes is not what the server, the table or the record says.
        PopAlignError: As `keep_trying`.
    """
    expected = _expected(file)
    if file.place.is_file():
        found = digests_of(file.place)
        if _problem(file.place, found, file, expected) is None:
            _drop(part_of(file))
            return found["sha256"]
        on_bytes(-file.place.stat().st_size)
        file.place.unlink()
    part = part_of(file)
    part.parent.mkdir(parents=True, exist_ok=True)
    was_begun = part.is_file() and part.stat().st_size > 0
    _receive(file, part, on_bytes)
    found = digests_of(part)
    if was_begun and _problem(part, found, file, expected) is not None:  # its beginning may be another version's
        on_bytes(-part.stat().st_size)
        _drop(part)
        _receive(file, part, on_bytes)
        found = digests_of(part)
    if (problem := _problem(part, found, file, expected)) is not None:
        _drop(part)
        raise DamagedWeightsError(
            f"{file.name} from {file.url} has {problem}; nothing of it was kept: run the same command again, or name "
            "another mirror"
        )
    with part.open("rb") as stream:
        os.fsync(stream.fileno())
    part.replace(file.place)
    _drop(part)
    return found["sha256"]


def part_of(file: RemoteFile) -> Path:
    """Where a file's bytes gather until all are there."""
    return file.place.with_name(file.place.name + PART)


def bytes_there(file: RemoteFile) -> int:
    """How much of a file need not be fetched again, by its size alone."""
    if file.place.is_file() and file.size in (None, file.place.stat().st_size):
        return file.place.stat().st_size
    part = part_of(file)
    return min(part.stat().st_size, file.size or 0) if part.is_file() else 0


def _receive(file: RemoteFile, part: Path, on_bytes: OnBytes) -> None:
    """All bytes of a file, however often the connection is cut."""
    keep_trying(
        lambda: _stream(file, part, on_bytes), file.source, lambda: part.stat().st_size if part.is_file() else 0
    )


def _stream(file: RemoteFile, part: Path, on_bytes: OnBytes) -> None:
    """One request for the bytes that are lacking.

    Raises:
        RemoteProtocolError: When fewer came than the server said.
    """
    start = part.stat().st_size if part.is_file() else 0
    if start and start == file.size:
        return
    headers = ask_headers(file.source)
    if start:
        headers["Range"] = f"bytes={start}-"
        if (validator := _validator(part)).is_file():
            headers["If-Range"] = validator.read_text(encoding="utf-8")
    with get_session().stream("GET", file.url, headers=headers, timeout=_TIMEOUT_S) as response:
        if response.status_code == _COMPLETE and start:
            if response.headers.get("Content-Range") == f"bytes */{start}":
                return  # all of it had come, and nobody knew how much that is
            _drop(part)  # it is longer than the file
            on_bytes(-start)
            raise RemoteProtocolError(f"there are {start} bytes already, and the server has no more")
        if response.status_code >= 400:
            response.read()
        check_answer(file.source, response)
        if start and not _goes_on(response, start):
            on_bytes(-start)
            start = 0
        if file.digest is None and (etag := response.headers.get("ETag", "")).startswith('"'):
            _validator(part).write_text(etag, encoding="utf-8")
        with part.open("ab" if start else "wb") as stream:
            for chunk in response.iter_bytes():  # as they come: what is gathered first is lost in a cut
                stream.write(chunk)
                stream.flush()  # what is counted can be resumed
                on_bytes(len(chunk))
    if file.size is not None and part.stat().st_size < file.size:
        raise RemoteProtocolError(f"{part.stat().st_size} of {file.size} bytes came")


def _goes_on(response: Any, start: int) -> bool:
    """Whether what comes begins where the file ends; some servers send all of it again."""
    said = str(response.headers.get("Content-Range", ""))
    return bool(response.status_code == 206) and said.startswith(f"bytes {start}-")


def _expected(file: RemoteFile) -> dict[str, str]:
    """By each kind of digest, what a file must have: as the server says, and as it was when it came first.

    Raises:
        DamagedWeightsError: When the server has another file now.
    """
    expected = {} if file.digest is None else dict([file.digest])
    entry = {} if file.in_cache else read_record(home_of(file.source)).get(file.noted_as, {})
    if entry.get("url") == file.origin and "sha256" in entry:
        recorded = str(entry["sha256"])
        if expected.get("sha256", recorded) != recorded:
            raise DamagedWeightsError(
                f"{file.name} from {file.url} has sha256 {expected['sha256']} now, and had {recorded} when it came "
                f"first; if that change is meant, take {file.noted_as!r} out of {home_of(file.source) / RECORD_FILE}"
            )
        expected["sha256"] = recorded
    return expected


def _problem(path: Path, found: dict[str, str], file: RemoteFile, expected: dict[str, str]) -> str | None:
    """How a file differs from what is expected; None where it does not."""
    if file.size is not None and (size := path.stat().st_size) != file.size:
        return f"{size} bytes, expected {file.size}"
    wrong = [kind for kind, value in expected.items() if found[kind] != value]
    return f"{wrong[0]} {found[wrong[0]]}, expected {expected[wrong[0]]}" if wrong else None


def _validator(part: Path) -> Path:
    """Where the server's name for the version of an unfinished file is kept, if nobody knows its digest."""
    return part.with_name(f"{part.name}.etag")


def _drop(part: Path) -> None:
    for path in (part, _validator(part)):
        path.unlink(missing_ok=True)


def _link(file: RemoteFile) -> None:
    """Give bytes in the hub's cache their name there, as its own client does it."""
    source = file.source
    assert isinstance(source, HubFiles)
    link = Path(keep_trying(lambda: hf_hub_download(source.repo, file.name, revision=source.revision), source))
    if link.resolve() == file.place.resolve():
        return
    # without symbolic links it is a copy; and a server with names of its own for versions made the client fetch it
    if (problem := _problem(link, digests_of(link), file, _expected(file))) is not None:
        link.unlink()
        raise DamagedWeightsError(f"{file.name} from {file.url} has {problem}; run the same command again")
