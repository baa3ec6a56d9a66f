"""The doctor names what is there, what is missing, and what to do."""

import re
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
from prefect.settings import PREFECT_API_URL, temporary_settings

from flows.cli import doctor
from flows.cli.doctor import Finding
from popalign_core.machine import describe_machine
from tasks.common.kept_speeds import keep_value


def findings(root: str) -> dict[str, Finding]:
    return {finding.subject: finding for finding in doctor.examine(root)}


def test_versions_device_and_store_are_reported(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("PREFECT_API_URL", raising=False)
    (tmp_path / "store").mkdir()
    found = findings(str(tmp_path / "store"))
    assert found["torch"].detail.startswith("2.")
    assert found["device"].detail.split(":")[0].split(",")[0] in {"cpu", "cuda", "mps"}
    assert re.fullmatch(rf"{re.escape(str(tmp_path / 'store'))} can be written, \d+ GiB free", found["store"].detail)
    assert found["prefect server"].exit_code == 0


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path) -> None:
    said = findings(str(tmp_path / "a" / "store"))["store"].detail
    assert said.startswith(f"{tmp_path / 'a' / 'store'} is not there yet; a run makes it in {tmp_path}, ")
    assert list(tmp_path.iterdir()) == []


def test_an_unwritable_root_is_a_store_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a folder", encoding="utf-8")
    finding = findings(str(tmp_path / "file" / "store"))["store"]
    assert finding.exit_code == 5
    assert str(tmp_path / "file") in finding.detail


def test_a_silent_server_is_a_service_error(tmp_path: Path) -> None:
    with temporary_settings({PREFECT_API_URL: "http://127.0.0.1:9/api"}):
        finding = findings(str(tmp_path))["prefect server"]
    assert finding.exit_code == 7
    assert "http://127.0.0.1:9/api does not answer" in finding.detail


def test_absent_deepface_weights_are_optional(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DEEPFACE_HOME", str(tmp_path))
    finding = findings(str(tmp_path))["DeepFace gender_model_weights.pth"]
    assert (finding.exit_code, finding.is_there) == (0, False)
    assert str(tmp_path / ".deepface" / "weights") in finding.detail


def test_scorers_without_weights_say_how_to_get_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "scorers" / "clip-vit-large-patch14").mkdir(parents=True)
    found = findings(str(tmp_path))
    clip = found["scorer clip_score"]
    assert clip == Finding("scorer clip_score", str(tmp_path / "scorers" / "clip-vit-large-patch14"))
    assert found["scorer hps_v2.1"].exit_code == 0
    assert "hf download xswu/HPSv2 HPS_v2.1_compressed.pt --local-dir scorers" in found["scorer hps_v2.1"].detail


def test_a_missing_package_says_how_to_get_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "REQUIRED", ("surely-not-installed",))
    first = next(doctor._packages())
    assert (first.subject, first.exit_code) == ("surely-not-installed", 1)
    assert "make setup" in first.detail


Install = Callable[..., None]


@pytest.fixture
def install(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Install:
    """Puts a package in front of all that are installed."""

    def put(package: str, name: str, version: str, /, *requires: str, **files: str) -> None:
        info = tmp_path / "site" / f"{name}-{version}.dist-info"
        info.mkdir(parents=True)
        lines = ["Metadata-Version: 2.1", f"Name: {name}", f"Version: {version}"]
        lines += [f"Requires-Dist: {each}" for each in requires]
        (info / "METADATA").write_text("\n".join(lines), encoding="utf-8")
        (tmp_path / "site" / package).mkdir()
        for file, content in {"__init__": "", **files}.items():
            (tmp_path / "site" / package / f"{file}.py").write_text(content, encoding="utf-8")
        monkeypatch.syspath_prepend(str(tmp_path / "site"))
        monkeypatch.delitem(sys.modules, package, raising=False)

    return put


def test_a_torchvision_for_another_torch_is_told(install: Install) -> None:
    install("torchvision", "torchvision", "0.9.0", "torch==1.8.0", version="__version__ = '0.9.0+cpu'")
    found = {finding.subject: finding for finding in doctor._clip_packages()}
    assert (found["torchvision"].exit_code, found["torchvision"].is_there) == (1, False)
    assert re.match(r"0\.9\.0\+cpu: it needs torch==1\.8\.0, and 2\.\S+ is installed\. tr", found["torchvision"].detail)


def test_a_torchvision_that_does_not_load_takes_others_with_it(install: Install) -> None:
    why = "raise RuntimeError('operator torchvision::nms does not exist')"
    install("torchvision", "torchvision", "0.28.0", "torch", __init__=why, version="__version__ = '0.28.0+cpu'")
    install("open_clip", "open_clip_torch", "3.3.0", "torch>=2.0", "training-tools; extra == 'training'")
    found = {finding.subject: finding for finding in doctor._clip_packages()}
    vision, clip = found["torchvision"], found["open_clip_torch"]
    assert "it does not load beside torch 2." in vision.detail
    assert "(operator torchvision::nms does not exist). transformers and diffusers fail with it" in vision.detail
    assert "install it from where torch came (see docs/install.md), or uninstall it" in vision.detail
    assert clip.detail == "optional: 3.3.0 does not work: torchvision does not work, see there"
    assert (vision.exit_code, clip.exit_code) == (1, 0)


def test_a_torchvision_of_another_build_that_loads_is_told(install: Install, monkeypatch: pytest.MonkeyPatch) -> None:
    install("torchvision", "torchvision", "0.28.0", "torch", version="__version__ = '0.28.0+cu130'")
    monkeypatch.setattr("torch.version.cuda", None)
    vision = next(iter(doctor._clip_packages()))
    assert (vision.subject, vision.is_there, vision.exit_code) == ("torchvision", True, 0)
    assert vision.detail.startswith("0.28.0+cu130, which is no build for torch 2.")


def test_versions_that_do_not_fit_and_what_hpsv2_lacks_are_told(install: Install) -> None:
    install("open_clip", "open_clip_torch", "3.3.0", "torch>=99", "surely-not-installed>=1")
    install("hpsv2", "hpsv2", "1.2.0", "protobuf<4")
    found = {finding.subject: finding for finding in doctor._clip_packages()}
    clip, hps = found["open_clip_torch"], found["hpsv2"]
    assert re.search(r"3\.3\.0 does not work: it needs torch>=99, and 2\.\S+ is installed; it needs sur", clip.detail)
    assert clip.detail.endswith("it needs surely-not-installed>=1, and none is installed")
    assert hps.detail.endswith("its wheel lacks bpe_simple_vocab_16e6.txt.gz; copy open_clip's, see docs/install.md")
    assert "protobuf" not in hps.detail
    assert (hps.is_there, hps.exit_code) == (False, 0)


def test_the_fastest_layout_is_shown_with_what_it_is_for(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("POPALIGN_CACHE", str(tmp_path / "cache"))
    assert findings(str(tmp_path))["rates"].detail.endswith("`popalign plan --measure`")
    here = describe_machine("cpu", 3)
    about = {"machine": here, "model": ["UNet 7 torch.float32"], "size": [64, 32], "batch_size": 32}
    value = {"channels_last": False, "batch_size": 16, "compile": False, "gain": 1.127}
    keep_value("layouts", about, value)
    elsewhere = about | {"machine": here | {"cpu": "another"}, "size": [8, 8]}
    keep_value("layouts", elsewhere, value)
    keep_value("rates", {"stage": "sample", "machine": here}, {"unit_s": 1.0})
    found = findings(str(tmp_path))
    assert found["rates"].detail == f"1 of this machine in {tmp_path / 'cache' / 'speeds.json'}"
    assert found["fastest layout, 64 x 32 px"].detail == (
        "channels_last=false, batches of 16: 1.13 times the default, UNet 7 torch.float32, 3 thread(s), batch_size 32"
    )
    assert "fastest layout, 8 x 8 px" not in found
