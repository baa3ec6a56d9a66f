"""Downloads from servers that cut connections, throttle, lie and refuse: they end in the right bytes or words."""

import hashlib
import json
import random
import shutil
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from huggingface_hub import constants
from weights_server import COMMIT, TOKEN, Repository, WeightsServer, git_sha1, serve_weights

from popalign_core.downloads import download_errors, transfer
from popalign_core.downloads.file_records import RECORD_FILE, hold_folder, read_record
from popalign_core.downloads.remote_files import list_source
from popalign_core.downloads.transfer import fetch_listing
from popalign_core.errors import (
    ConfigError,
    DamagedWeightsError,
    MissingWeightsError,
    PopAlignError,
    ServiceError,
    StoreError,
)
from popalign_core.sources import HubFiles, Source, WebFile

CONTENT = random.Random(0).randbytes(400_000)
OTHER = random.Random(1).randbytes(400_000)
SHA256 = hashlib.sha256(CONTENT).hexdigest()


@pytest.fixture
def server() -> Iterator[WeightsServer]:
    with serve_weights() as server:
        server.files["/file.bin"] = CONTENT
        files = {"file.bin": CONTENT, "config.json": b'{"a": 1}', "model.safetensors": OTHER, "merges.txt": b"a b\n"}
        server.repositories["owner/name"] = Repository(files)
        yield server


@pytest.fixture(autouse=True)
def waits(server: WeightsServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> list[float]:
    """The hub is the server; nobody waits, and how long it would have been is kept."""
    waited: list[float] = []
    monkeypatch.setattr(download_errors.time, "sleep", waited.append)
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    monkeypatch.setattr(
        constants, "HUGGINGFACE_CO_URL_TEMPLATE", server.url + "/{repo_id}/resolve/{revision}/{filename}"
    )
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "hub"))
    monkeypatch.delenv("HF_TOKEN", raising=False)
    monkeypatch.delenv("POPALIGN_FILES_ENDPOINT", raising=False)
    return waited


@pytest.fixture
def web(server: WeightsServer, tmp_path: Path) -> WebFile:
    return WebFile(f"{server.url}/file.bin", tmp_path / "weights" / "file.bin", "classifiers")


@pytest.fixture
def hub(tmp_path: Path) -> HubFiles:
    return HubFiles("owner/name", "file", "scorers", inside="file.bin", place=tmp_path / "weights" / "file.bin")


def fetch(source: Source) -> list[int]:
    steps: list[int] = []
    assert source.place is not None
    source.place.parent.mkdir(exist_ok=True)
    fetch_listing(list_source(source), steps.append)
    return steps


def test_a_file_of_an_address(web: WebFile, server: WeightsServer) -> None:
    assert sum(fetch(web)) == len(CONTENT)
    assert sorted(path.name for path in web.place.parent.iterdir()) == ["file.bin", RECORD_FILE]
    assert web.place.read_bytes() == CONTENT
    assert read_record(web.place.parent) == {"file.bin": {"sha256": SHA256, "url": f"{server.url}/file.bin"}}
    assert fetch(web) == []  # what is there and right stays


def test_a_folder_is_there_when_it_is_whole(server: WeightsServer, tmp_path: Path) -> None:
    source = HubFiles("owner/name", "network", "scorers", place=tmp_path / "weights" / "clip")
    server.faults.broken = 100
    with pytest.raises(ServiceError, match="answers 503"):
        fetch(source)
    assert not source.place.exists()
    server.faults.broken = 0
    fetch(source)
    assert sorted(path.name for path in source.place.iterdir()) == ["config.json", "merges.txt", "model.safetensors"]
    assert sorted(read_record(source.place.parent)) == ["clip/config.json", "clip/merges.txt", "clip/model.safetensors"]
    assert not (tmp_path / "weights" / "clip.part").exists()


@pytest.mark.parametrize("kind", ["web", "hub"])
def test_a_cut_connection_goes_on_where_it_ended(
    kind: str, request: pytest.FixtureRequest, server: WeightsServer, waits: list[float]
) -> None:
    source = request.getfixturevalue(kind)
    server.faults.cuts = 5
    steps = fetch(source)
    assert source.place.read_bytes() == CONTENT
    assert len(waits) == 5
    assert all(n > 0 for n in steps)
    assert sum(steps) == len(CONTENT)
    ranges = [headers.get("range") for method, path, headers in server.asked if "/file.bin" in path and method == "GET"]
    half = len(CONTENT) // 2
    assert f"bytes={half}-" in ranges
    assert f"bytes={half + half // 2}-" in ranges


def test_a_server_that_sends_all_again(web: WebFile, server: WeightsServer) -> None:
    server.faults.cuts, server.faults.ignores_range = 2, True
    steps = fetch(web)
    assert web.place.read_bytes() == CONTENT
    assert min(steps) < 0
    assert sum(steps) == len(CONTENT)


def test_connections_that_are_always_cut(web: WebFile, server: WeightsServer, waits: list[float]) -> None:
    server.faults.cuts = server.faults.ignores_range = 10**6  # each time the same half
    with pytest.raises(
        ServiceError, match=r"connection to file.bin at 127.0.0.1.* fails.*same command resumes"
    ) as caught:
        fetch(web)
    assert caught.value.exit_code == 7
    assert waits == sorted(waits)
    server.faults.cuts = 0
    fetch(web)
    assert web.place.read_bytes() == CONTENT


def test_nobody_there(web: WebFile, hub: HubFiles, server: WeightsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    gone = WebFile("http://127.0.0.1:9/file.bin", web.place, "classifiers")
    with pytest.raises(ServiceError, match=r"connection to file.bin at 127\.0\.0\.1:9 fails \(ConnectError"):
        fetch(gone)
    monkeypatch.setattr(constants, "ENDPOINT", "http://127.0.0.1:9")
    with pytest.raises(ServiceError, match=r"connection to http://127\.0\.0\.1:9/owner/name fails"):
        fetch(hub)


@pytest.mark.parametrize("kind", ["web", "hub"])
def test_patience_as_long_as_it_is_asked_for(
    kind: str, request: pytest.FixtureRequest, server: WeightsServer, waits: list[float]
) -> None:
    source = request.getfixturevalue(kind)
    server.faults.throttled, server.faults.retry_after = 2, "17"
    fetch(source)
    assert waits == [17, 17]
    assert source.place.read_bytes() == CONTENT


def test_a_server_that_stays_busy(web: WebFile, server: WeightsServer, waits: list[float]) -> None:
    server.faults.throttled, server.faults.retry_after = 10**6, "3"
    with pytest.raises(ServiceError, match=r"answers too many requests \(429\); wait 3 s; the same command") as caught:
        fetch(web)
    assert caught.value.exit_code == 7
    assert waits == [3, 3, 3, 4, 8]
    server.faults.retry_after = "86400"
    waits.clear()
    with pytest.raises(ServiceError, match="wait 86400 s"):
        fetch(web)
    assert waits == []


@pytest.mark.parametrize("kind", ["pinned", "hub"])
def test_a_wrong_checksum_leaves_nothing(kind: str, web: WebFile, hub: HubFiles, server: WeightsServer) -> None:
    source = hub if kind == "hub" else WebFile(web.url, web.place, "classifiers", SHA256)
    server.faults.lies = 1
    with pytest.raises(
        DamagedWeightsError, match=rf"has sha256 [0-9a-f]{{64}}, expected {SHA256}; nothing of it"
    ) as caught:
        fetch(source)
    assert caught.value.exit_code == 4
    assert [path.name for path in source.place.parent.iterdir()] == []
    fetch(source)
    assert source.place.read_bytes() == CONTENT


def test_a_beginning_of_another_version_is_fetched_again(hub: HubFiles, server: WeightsServer) -> None:
    hub.place.parent.mkdir()
    hub.place.with_name("file.bin.part").write_bytes(OTHER[:1000])
    fetch(hub)
    assert hub.place.read_bytes() == CONTENT
    ranges = [headers.get("range") for method, path, headers in server.asked if "/cdn/" in path and method == "GET"]
    assert ranges == ["bytes=1000-", None]


def test_a_version_without_a_digest_is_told_by_its_etag(web: WebFile, server: WeightsServer) -> None:
    server.faults.cuts = server.faults.ignores_range = 10**6
    with pytest.raises(ServiceError):
        fetch(web)
    server.faults.cuts = server.faults.ignores_range = 0
    server.files["/file.bin"] = OTHER
    fetch(web)
    assert web.place.read_bytes() == OTHER


def test_what_changed_since_it_came_first_is_refused(web: WebFile, hub: HubFiles, server: WeightsServer) -> None:
    for source in (web, hub):
        fetch(source)
        source.place.unlink()
        server.files["/file.bin"] = server.repositories["owner/name"].files["file.bin"] = OTHER
        with pytest.raises(DamagedWeightsError, match=f"{SHA256}"):
            fetch(source)
        assert not source.place.exists()
        server.files["/file.bin"] = server.repositories["owner/name"].files["file.bin"] = CONTENT
        fetch(source)
        source.place.unlink()
        (source.place.parent / RECORD_FILE).unlink()


def test_a_damaged_file_is_replaced(hub: HubFiles) -> None:
    hub.place.parent.mkdir()
    hub.place.write_bytes(OTHER)  # as long as the right one
    steps = fetch(hub)
    assert hub.place.read_bytes() == CONTENT
    assert steps[0] == -len(OTHER)


Break = Callable[[WeightsServer, pytest.MonkeyPatch], None]


def _gate(server: WeightsServer, patch: pytest.MonkeyPatch) -> None:
    server.repositories["owner/name"].is_gated = True


def _hide(server: WeightsServer, patch: pytest.MonkeyPatch) -> None:
    server.repositories["owner/name"].is_private = True


def _wrong_token(server: WeightsServer, patch: pytest.MonkeyPatch) -> None:
    patch.setenv("HF_TOKEN", "hf_secret")


def _lose(server: WeightsServer, patch: pytest.MonkeyPatch) -> None:
    del server.repositories["owner/name"].files["file.bin"]


def _offline(server: WeightsServer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "HF_HUB_OFFLINE", True)


def _no_address(server: WeightsServer, patch: pytest.MonkeyPatch) -> None:
    patch.setattr(constants, "ENDPOINT", "hub.example")


@pytest.mark.parametrize(
    ("spoil", "kind", "message"),
    [
        (_gate, MissingWeightsError, "owner/name is gated: accept its license on its page, then set HF_TOKEN"),
        (_hide, ConfigError, "there is no repository .*owner/name, or it is private"),
        (_wrong_token, ConfigError, r"refuses the token \(401\); correct HF_TOKEN"),
        (_lose, MissingWeightsError, "owner/name@main has no file file.bin"),
        (_offline, ConfigError, "HF_HUB_OFFLINE forbids every download"),
        (_no_address, ConfigError, "owner/name is not a valid address"),
    ],
)
def test_what_the_hub_refuses(
    spoil: Break, kind: type[PopAlignError], message: str, hub: HubFiles, server: WeightsServer,
    monkeypatch: pytest.MonkeyPatch, waits: list[float],
) -> None:  # fmt: skip
    spoil(server, monkeypatch)
    with pytest.raises(kind, match=message) as caught:
        fetch(hub)
    assert type(caught.value) is kind
    assert "hf_secret" not in str(caught.value)
    assert waits == []


def test_an_unknown_revision(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"has no revision '{'b' * 40}'; give one of its commits"):
        list_source(HubFiles("owner/name", "network", "scorers", "b" * 40, place=tmp_path / "clip"))


def test_an_address_that_is_gone(web: WebFile, server: WeightsServer) -> None:
    server.files.clear()
    with pytest.raises(
        MissingWeightsError, match=r"file.bin at .* has no such file \(404\); look where it has moved to"
    ):
        fetch(web)


def test_the_token_goes_to_the_hub_alone(
    web: WebFile, hub: HubFiles, server: WeightsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("HF_TOKEN", TOKEN)
    server.repositories["owner/name"].is_gated = True
    fetch(hub)
    hub.place.unlink()
    (hub.place.parent / RECORD_FILE).unlink()
    fetch(web)
    told = {path.split("/")[1] for _, path, headers in server.asked if "authorization" in headers}
    assert told == {"api", "owner"}
    assert {path.split("/")[1] for _, path, _ in server.asked} == {"api", "owner", "cdn", "file.bin"}


def test_a_mirror(web: WebFile, server: WeightsServer, monkeypatch: pytest.MonkeyPatch) -> None:
    elsewhere = WebFile("https://files.example/deep/file.bin", web.place, "classifiers")
    server.files["/mirror/deep/file.bin"] = CONTENT
    monkeypatch.setenv("POPALIGN_FILES_ENDPOINT", f"{server.url}/mirror/")
    fetch(elsewhere)
    assert web.place.read_bytes() == CONTENT
    assert read_record(web.place.parent)["file.bin"]["url"] == "https://files.example/deep/file.bin"
    monkeypatch.setenv("POPALIGN_FILES_ENDPOINT", "mirror")
    with pytest.raises(ConfigError, match=r"\$POPALIGN_FILES_ENDPOINT is 'mirror'; write an address"):
        list_source(elsewhere)


def test_one_process_at_a_time(tmp_path: Path) -> None:
    with hold_folder(tmp_path), pytest.raises(StoreError, match=f"another `popalign fetch` writes into {tmp_path}"):
        hold_folder(tmp_path).__enter__()


def test_a_full_disk(server: WeightsServer, make_disk: Callable[[str], Path]) -> None:
    disk = make_disk("200k")
    source = WebFile(f"{server.url}/file.bin", disk / "file.bin", "classifiers")
    with pytest.raises(StoreError, match=r"the disk is full .*make room; the same command resumes") as caught:
        fetch_listing(list_source(source), lambda n: None)
    assert caught.value.exit_code == 5


def test_the_commit_is_that_of_the_repository(hub: HubFiles) -> None:
    listing = list_source(hub)
    assert (listing.commit, listing.files[0].digest) == (COMMIT, ("sha256", SHA256))


def test_a_mirror_that_lists_names_alone(hub: HubFiles, server: WeightsServer, tmp_path: Path) -> None:
    server.faults.tells_names_alone = True
    fetch(hub)
    assert hub.place.read_bytes() == CONTENT
    files = list_source(HubFiles("owner/name", "network", "scorers", place=tmp_path / "clip")).files
    assert {file.name: (file.size, file.digest) for file in files} == {
        "config.json": (8, ("git-sha1", git_sha1(b'{"a": 1}'))),
        "merges.txt": (4, ("git-sha1", git_sha1(b"a b\n"))),
        "model.safetensors": (len(OTHER), ("sha256", hashlib.sha256(OTHER).hexdigest())),
    }


class _Killed(BaseException):
    """As sudden as a signal: nothing tidies up after it."""


_STEPS: tuple[tuple[Any, str], ...] = (
    *((Path, name) for name in ("replace", "rename")),
    *((transfer, name) for name in ("write_record", "_link")),
)


class _Ending:
    """Ends everything at the n-th call of several functions, before it or after it."""

    def __init__(self, n: int, *, is_after: bool) -> None:
        self.n, self.is_after, self.n_calls = n, is_after, 0

    def instead_of(self, work: Callable[..., Any]) -> Callable[..., Any]:
        def spoilt(*args: Any, **options: Any) -> Any:
            self.n_calls += 1
            is_it = self.n_calls == self.n
            if is_it and not self.is_after:
                raise _Killed
            result = work(*args, **options)
            if is_it:
                raise _Killed
            return result

        return spoilt


@pytest.mark.slow
@pytest.mark.parametrize("is_after", [False, True])
def test_ended_at_any_step(is_after: bool, server: WeightsServer, tmp_path: Path) -> None:
    """At every file that gets its name, its note or its link: before or after it, and then the next time."""
    index = json.dumps({"unet": ["diffusers", "UNet2DConditionModel"]}).encode()
    weights = {"unet/config.json": b"{}", "unet/diffusion_pytorch_model.safetensors": CONTENT}
    server.repositories["owner/model"] = Repository({"model_index.json": index} | weights)
    sources = [
        HubFiles("owner/model", "pipeline", "model", COMMIT),
        HubFiles("owner/name", "network", "scorers", place=tmp_path / "weights" / "clip"),
        WebFile(f"{server.url}/file.bin", tmp_path / "weights" / "file.bin", "classifiers"),
    ]
    n_ended = 0
    for n in range(100):
        shutil.rmtree(tmp_path / "weights", ignore_errors=True)
        shutil.rmtree(tmp_path / "hub", ignore_errors=True)
        (tmp_path / "weights").mkdir()
        try:
            with pytest.MonkeyPatch.context() as patch:
                end = _Ending(n + 1, is_after=is_after)
                for where, name in _STEPS:
                    patch.setattr(where, name, end.instead_of(getattr(where, name)))
                for source in sources:
                    fetch_listing(list_source(source), lambda n: None)
        except _Killed:
            n_ended += 1
        for source in sources:
            fetch_listing(list_source(source), lambda n: None)
        snapshot = tmp_path / "hub" / "models--owner--model" / "snapshots" / COMMIT
        assert {name: (snapshot / name).read_bytes() for name in weights} == weights
        clip = {path.name: path.read_bytes() for path in (tmp_path / "weights" / "clip").iterdir()}
        assert clip == {name: server.repositories["owner/name"].files[name] for name in clip}
        assert len(clip) == 3
        assert (tmp_path / "weights" / "file.bin").read_bytes() == CONTENT
        assert sorted(path.name for path in (tmp_path / "weights").iterdir()) == ["clip", "file.bin", RECORD_FILE]
        if n_ended <= n:
            break
    assert n_ended == 19  # 7 files, 4 notes with a file of their own each, 1 folder, 3 links


def test_damage_in_the_hubs_cache_is_mended(server: WeightsServer, tmp_path: Path) -> None:
    index = json.dumps({"vae": ["diffusers", "AutoencoderKL"]}).encode()
    weights = {"vae/config.json": b"{}", "vae/diffusion_pytorch_model.safetensors": CONTENT}
    server.repositories["owner/model"] = Repository({"model_index.json": index} | weights)
    source = HubFiles("owner/model", "pipeline", "model", COMMIT)
    fetch_listing(list_source(source), lambda n: None)
    vae = tmp_path / "hub" / "models--owner--model" / "snapshots" / COMMIT / "vae"
    (vae / "diffusion_pytorch_model.safetensors").resolve().write_bytes(OTHER)
    (vae / "config.json").unlink()
    fetch_listing(list_source(source), lambda n: None)
    assert {f"vae/{path.name}": path.read_bytes() for path in vae.iterdir()} == weights


def test_a_host_that_tells_no_size(web: WebFile, server: WeightsServer) -> None:
    server.faults.refuses_head = True
    assert list_source(web).files[0].size is None
    server.faults.cuts = 2
    assert sum(fetch(web)) == len(CONTENT)
    assert web.place.read_bytes() == CONTENT
    web.place.rename(web.place.with_name("file.bin.part"))  # ended before it got its name
    assert fetch(web) == []
    assert web.place.read_bytes() == CONTENT
