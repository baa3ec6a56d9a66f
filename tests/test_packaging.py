"""What `pip install` gets: metadata, the lock, the command."""

import re
import tomllib
from importlib import metadata
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.version import Version

import popalign_core

REPOSITORY = Path(__file__).resolve().parents[1]
ISSUE_TEMPLATES = sorted(
    path.relative_to(REPOSITORY) for path in (REPOSITORY / ".github" / "ISSUE_TEMPLATE").glob("*.yml")
)
PYPROJECT = tomllib.loads((REPOSITORY / "pyproject.toml").read_text(encoding="utf-8"))
LOCK = {
    name.lower(): version
    for name, version in re.findall(r"^([\w.-]+)==(\S+)$", (REPOSITORY / "constraints.txt").read_text(), re.MULTILINE)
}


def requirements(*extras: str) -> list[Requirement]:
    project = PYPROJECT["project"]
    lines = [*project["dependencies"], *(line for extra in extras for line in project["optional-dependencies"][extra])]
    return [Requirement(line) for line in lines]


def locked(name: str) -> str | None:
    """The pinned version; names compare as packaging says: case, '-', '_' and '.' are one."""
    spelled = {re.sub(r"[-_.]+", "-", key): version for key, version in LOCK.items()}
    return spelled.get(re.sub(r"[-_.]+", "-", name.lower()))


def test_the_lock_pins_every_direct_dependency_inside_its_range() -> None:
    outside = [
        f"{requirement}: locked at {locked(requirement.name)}"
        for requirement in requirements("dev", "slow", "clip", "hps", "docs")
        if (version := locked(requirement.name)) is None or Version(version) not in requirement.specifier
    ]
    assert outside == []


def test_the_lock_names_no_machine_and_no_gpu_wheel() -> None:
    lines = (REPOSITORY / "constraints.txt").read_text(encoding="utf-8").splitlines()
    pins = [line for line in lines if not line.startswith("#")]
    assert [line for line in pins if not re.fullmatch(r"[\w.-]+==[\w.]+", line)] == []
    assert [line for line in pins if line.startswith(("nvidia", "triton", "torchvision"))] == []


def test_installed_versions_are_the_locked_ones() -> None:
    """`make setup` gave what the lock says (a CPU build of torch carries +cpu)."""
    different = [
        f"{name}: installed {metadata.version(name)}, locked {version}"
        for name, version in LOCK.items()
        if name in {"torch", "diffusers", "transformers", "prefect", "fastapi", "pyarrow", "pandas", "deepface"}
        and metadata.version(name).split("+")[0] != version
    ]
    assert different == []


def test_what_the_makefile_installs_in_steps_is_what_is_required() -> None:
    """A name that pyproject.toml drops must not be installed all the same."""
    makefile = (REPOSITORY / "Makefile").read_text(encoding="utf-8")
    steps = dict(re.findall(r"^(MODELS|FACES|TABLES_AND_FLOWS|STORES) := (.+)$", makefile, re.MULTILINE))
    named = {step: {Requirement(word).name for word in words.split()} for step, words in steps.items()}
    runtime, everything = ({each.name for each in requirements(*extras)} for extras in ((), ("dev",)))
    assert len(named) == 4
    assert named.pop("STORES") <= everything - runtime
    assert set().union(*named.values()) <= runtime


def test_hpsv2_is_installed_as_the_docs_say() -> None:
    """Beside what it pins, not with it; the vocabulary that its wheel lacks comes from open_clip's."""
    makefile, page = ((REPOSITORY / name).read_text(encoding="utf-8") for name in ("Makefile", "docs/install.md"))
    for name in ("TORCHVISION_PIN", "HPSV2_PIN"):
        pin = re.search(rf"^{name} := (\S+)$", makefile, re.MULTILINE)
        assert pin is not None
        assert pin[1] in page
    assert "cp open_clip/bpe_simple_vocab_16e6.txt.gz hpsv2/src/open_clip/" in makefile
    assert "cp open_clip/bpe_simple_vocab_16e6.txt.gz hpsv2/src/open_clip/" in page
    assert "hpsv2" not in {requirement.name for requirement in requirements("hps", "clip", "dev", "slow")}


def test_running_needs_none_of_the_tests_tools() -> None:
    tools = {
        "pytest",
        "ray",
        "prefect-ray",
        "prefect-dask",
        "dask",
        "moto",
        "playwright",
        "wandb",
        "bitsandbytes",
        "mypy",
        "mkdocs",
        "mkdocs-material",
    }
    assert tools & {each.name for each in requirements()} == set()


def test_the_command_points_at_the_command_line() -> None:
    assert PYPROJECT["project"]["scripts"] == {"popalign": "popalign_core.command:start"}
    from flows.cli.app import main

    assert callable(main)


def test_the_license_is_apache_2() -> None:
    text = (REPOSITORY / "LICENSE").read_text(encoding="utf-8")
    assert PYPROJECT["project"]["license"] == "Apache-2.0"
    assert text.split()[:4] == ["Apache", "License", "Version", "2.0,"]
    assert "END OF TERMS AND CONDITIONS" in text


def test_the_version_is_in_the_changelog() -> None:
    assert "version" in PYPROJECT["project"]["dynamic"]
    assert f"## {popalign_core.__version__}" in (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8")
    citation = yaml.safe_load((REPOSITORY / "CITATION.cff").read_text(encoding="utf-8"))
    assert citation["version"] == popalign_core.__version__


def test_the_newest_release_says_what_was_added_changed_and_fixed() -> None:
    newest = (REPOSITORY / "CHANGELOG.md").read_text(encoding="utf-8").split("\n## ")[1]
    assert re.findall(r"^### (\w+)$", newest, re.MULTILINE) == ["Added", "Changed", "Fixed"]


@pytest.mark.parametrize("path", [".pre-commit-config.yaml", "mkdocs.yml", *map(str, ISSUE_TEMPLATES)])
def test_files_of_other_tools_are_yaml(path: str) -> None:
    assert yaml.safe_load((REPOSITORY / path).read_text(encoding="utf-8"))
