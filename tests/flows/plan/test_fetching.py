"""What is fetched for a configuration, what it takes, and what nobody can fetch."""

from collections import namedtuple
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants
from weights_server import Repository, WeightsServer, serve_weights

from flows.plan.fetching import check_room, fetch_jobs, parse_groups, plan_fetch
from flows.plan.preflight import list_needs
from flows.plan.steps import PIPELINE
from flows.terminal.fetch_tables import fetch_lines, size_text
from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.config.presets import PRESETS, preset
from popalign_core.errors import ConfigError, MissingWeightsError, StoreError
from popalign_core.sources import GROUPS, HubFiles, WebFile
from tasks.common.needs import Need


def need_of(what: str, source: HubFiles | WebFile, *, is_optional: bool = False) -> Need:
    place = source.place
    assert place is not None

    def find() -> Path:
        if not place.exists():
            raise MissingWeightsError(f"no {place}")
        return place

    return Need(what, find, is_optional, source)


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[WeightsServer]:
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
    monkeypatch.delenv("POPALIGN_FILES_ENDPOINT", raising=False)
    with serve_weights() as server:
        server.files = {"/a.pth": b"a" * 3_000_000, "/b.pth": b"b" * 1_500_000}
        yield server


@pytest.fixture
def needs(server: WeightsServer, tmp_path: Path) -> list[Need]:
    first = WebFile(f"{server.url}/a.pth", tmp_path / "a.pth", "classifiers")
    second = WebFile(f"{server.url}/b.pth", tmp_path / "b.pth", "scorers")
    again = WebFile(second.url, second.place, "scorers")
    return [need_of("a", first), need_of("b", second, is_optional=True), need_of("b for another", again)]


def test_each_thing_once(needs: list[Need], tiny_config: PipelineConfig, tmp_path: Path) -> None:
    plan = plan_fetch(needs, tiny_config, GROUPS)
    assert [(job.need.what, job.n_bytes) for job in plan.jobs] == [("a", 3_000_000), ("b", 1_500_000)]
    said: list[tuple[str, int, int]] = []
    fetch_jobs(plan.jobs, lambda label, done, total: said.append((label, done, total)))
    assert (tmp_path / "b.pth").read_bytes() == b"b" * 1_500_000
    assert said[-1] == ("fetch, MiB", 5, 5)
    assert [done for _, done, _ in said] == sorted({done for _, done, _ in said})
    done = plan_fetch(needs, tiny_config, GROUPS)
    assert (done.jobs, done.n_there) == ((), 3)
    assert list(fetch_lines(done)) == ["nothing to download: 3 item(s) present"]


def test_of_an_unfinished_file_the_rest_counts(needs: list[Need], tiny_config: PipelineConfig, tmp_path: Path) -> None:
    (tmp_path / "a.pth.part").write_bytes(b"a" * 1_000_000)
    plan = plan_fetch(needs, tiny_config, {"classifiers"})
    assert [job.n_bytes for job in plan.jobs] == [2_000_000]
    assert next(fetch_lines(plan)) == "a: 1.9 MiB, 1 file(s)"
    fetch_jobs(plan.jobs, lambda *said: None)
    assert (tmp_path / "a.pth").read_bytes() == b"a" * 3_000_000


def test_no_room_is_told_before_the_first_byte(
    needs: list[Need], tiny_config: PipelineConfig, server: WeightsServer, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    plan = plan_fetch(needs, tiny_config, GROUPS)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 4_499_999))
    with pytest.raises(StoreError, match=r"0\.0 GiB are to be fetched, and the disk of .* has 0\.0 GiB left") as caught:
        check_room(plan.jobs)
    assert (caught.value.exit_code, server.n_sent) == (5, 0)
    monkeypatch.setattr("shutil.disk_usage", lambda path: usage(0, 0, 4_500_000))
    check_room(plan.jobs)


def test_what_another_process_fetched_meanwhile_stays(
    needs: list[Need], tiny_config: PipelineConfig, server: WeightsServer, tmp_path: Path
) -> None:
    plan = plan_fetch(needs, tiny_config, {"classifiers"})
    (tmp_path / "a.pth").write_bytes(b"theirs")
    fetch_jobs(plan.jobs, lambda *said: None)
    assert ((tmp_path / "a.pth").read_bytes(), server.n_sent) == (b"theirs", 0)


def test_what_nobody_can_fetch_is_left(tiny_config: PipelineConfig) -> None:
    def find(error: Exception) -> Callable[[], object]:
        def raises() -> object:
            raise error

        return raises

    own, device = MissingWeightsError("nothing at mine.onnx"), ConfigError("no such device")
    needs = [Need("classifier mine", find(own)), Need("device cuda", find(device))]
    assert plan_fetch(needs, tiny_config, GROUPS).left == (own,)
    unpinned = ConfigError("no revision")
    needs = [Need(f"model {tiny_config.model.name}", find(unpinned))]
    assert plan_fetch(needs, tiny_config, GROUPS).left == (unpinned,)
    assert plan_fetch(needs, tiny_config, {"scorers"}).left == ()


def test_what_came_whole_and_is_of_no_use(server: WeightsServer, tiny_config: PipelineConfig, tmp_path: Path) -> None:
    source = WebFile(f"{server.url}/a.pth", tmp_path / "a.pth", "classifiers")

    def find() -> object:
        raise MissingWeightsError("a.pth is no model")

    plan = plan_fetch([Need("a", find, source=source)], tiny_config, GROUPS)
    with pytest.raises(MissingWeightsError, match=r"^a was downloaded completely, but cannot .*: a\.pth is no model"):
        fetch_jobs(plan.jobs, lambda *said: None)


def test_groups_by_name() -> None:
    assert parse_groups(None) == set(GROUPS)
    assert parse_groups("model, scorers") == {"model", "scorers"}
    with pytest.raises(ConfigError, match=r"has unknown groups \[''\]"):
        parse_groups("")


@pytest.mark.parametrize("name", sorted(set(PRESETS) - {"portraits", "smoke"}))
def test_of_the_presets_all_weights_have_a_source(name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path))
    asked = list_needs(PIPELINE, preset(name), RuntimeConfig())
    without = [need.what for need in asked if need.source is None]
    assert all(what.startswith(("device", "prompt list", "classifier deepface for")) for what in without), without
    groups = [need.source.group for need in asked if need.source is not None]
    assert {group: groups.count(group) for group in set(groups)} == {
        "model": 1, "classifiers": 3, "scorers": 12, **({"lora": 1} if name == "sdxl-lightning" else {}),
    }  # fmt: skip


def test_sizes_in_words(
    server: WeightsServer, tiny_config: PipelineConfig, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert [size_text(n) for n in (0, 1023, 1536, 5 * 2**20, 7 * 2**30)] == [
        "0 bytes", "1023 bytes", "1.5 KiB", "5.0 MiB", "7.0 GiB",
    ]  # fmt: skip
    server.repositories["owner/clip"] = Repository({"config.json": b"{}", "model.safetensors": b"x" * 2046}, "mit")
    monkeypatch.setattr(constants, "ENDPOINT", server.url)
    source = HubFiles("owner/clip", "network", "scorers", place=tmp_path / "clip")
    plan = plan_fetch([need_of("scorer clip", source)], tiny_config, GROUPS)
    assert list(fetch_lines(plan)) == [
        "scorer clip: 2.0 KiB, 2 file(s)",
        f"  from     owner/clip at {'a' * 40}",
        f"  to       {tmp_path / 'clip'}",
        "  license  mit by its card: what it forbids is not known here; see URL (https://huggingface.co/owner/clip)",
        "2.0 KiB to download, 2 file(s); 0 other item(s) already present",
    ]
