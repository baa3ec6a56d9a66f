"""The layer rule, read from the import statements: flows -> tasks -> {popalign_core, storage}."""

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[1]
PACKAGES = ("flows", "tasks", "popalign_core", "storage")
FORBIDDEN = {
    "flows": {"pyarrow", "diffusers", "transformers", "peft", "deepface", "tests"},
    "tasks": {"flows", "tests"},
    "popalign_core": {"flows", "tasks", "storage", "prefect", "pyarrow", "tests"},
    "storage": {"flows", "tasks", "torch", "prefect", "diffusers", "transformers", "tests"},
}
TOP_LEVEL = {
    *(".ci", ".github", ".gitignore", ".pre-commit-config.yaml", "CHANGELOG.md", "CITATION.cff", "CONTRIBUTING.md"),
    *("LICENSE", "Makefile", "README.md", "SECURITY.md"),
    *("benchmarks", "constraints.txt", "docs", "examples", "mkdocs.yml", "prefect.yaml", "pyproject.toml", "tests"),
    *PACKAGES,
}


def imported_modules(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." * node.level + (node.module or "")


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_point_one_way(package: str) -> None:
    wrong = [
        f"{path.relative_to(REPOSITORY)} imports {module}"
        for path in sorted((REPOSITORY / package).rglob("*.py"))
        for module in imported_modules(path)
        if module.split(".")[0] in FORBIDDEN[package]
    ]
    assert wrong == []


def test_storage_knows_only_errors_and_documents_of_the_core() -> None:
    used = {
        module
        for path in (REPOSITORY / "storage").rglob("*.py")
        for module in imported_modules(path)
        if module.startswith("popalign_core")
    }
    assert used <= {"popalign_core.errors", "popalign_core.documents"}


def test_relative_imports_are_not_used() -> None:
    """A rule over import statements is only as good as their spelling."""
    relative = [
        str(path.relative_to(REPOSITORY))
        for package in PACKAGES
        for path in (REPOSITORY / package).rglob("*.py")
        if any(module.startswith(".") for module in imported_modules(path))
    ]
    assert relative == []


def test_the_top_level_is_fixed() -> None:
    listed = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard"],
        cwd=REPOSITORY,
        capture_output=True,
        text=True,
        check=False,
    )
    if listed.returncode != 0:
        pytest.skip("not a git checkout")
    assert {line.split("/")[0] for line in listed.stdout.splitlines()} <= TOP_LEVEL


@pytest.mark.parametrize(
    ("module", "heavy"),
    [
        (
            "flows.cli.app",
            ("torch", "diffusers", "transformers", "prefect", "pandas", "pyarrow", "pydantic", "rich.progress"),
        ),
        (
            "popalign_core.config.presets",
            ("torch", "diffusers", "transformers", "deepface", "openai", "prefect", "pyarrow"),
        ),
        ("storage.store", ("torch", "diffusers", "prefect", "openai", "deepface")),
    ],
)
def test_imports_that_must_stay_light(module: str, heavy: tuple[str, ...]) -> None:
    code = f"import sys, {module}; print([name for name in {heavy!r} if name in sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], cwd=REPOSITORY, capture_output=True, text=True, check=True)
    assert result.stdout.strip() == "[]"
