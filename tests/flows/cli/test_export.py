"""Preferences out of the store and back in, from the command line."""

from collections.abc import Callable
from pathlib import Path

from typer.testing import CliRunner

from flows.cli.app import app
from popalign_core.config import RuntimeConfig
from storage.store import ArtifactRef


def test_an_export_is_imported_again(
    tiny_runtime: RuntimeConfig,
    stand_ins: None,
    give_artifacts: Callable[[str], dict[str, ArtifactRef]],
    tiny_weights: Path,
    tmp_path: Path,
) -> None:
    ref = give_artifacts("preferences")["preferences"]
    store, folder = ["--root", tiny_runtime.root], tmp_path / "pairs"
    result = CliRunner().invoke(app, ["export", "preferences", str(ref), str(folder), *store])
    assert result.exit_code == 0, result.output
    n_pairs = int(result.stdout.split()[0])
    assert result.stdout == f"{n_pairs} pair(s) are in {folder}\n"
    assert n_pairs > 0
    files = [str(file) for file in folder.iterdir()]
    settings = ["--preset", "smoke", "--set", f"model.name={tiny_weights / 'pipeline'}", "--set", "runtime.device=cpu"]
    result = CliRunner().invoke(app, ["import", "pairs", *files, *store, *settings])
    assert result.exit_code == 0, result.output
    assert f"{n_pairs} pair(s) to train on; dropped: none\n" in result.stderr

    result = CliRunner().invoke(
        app, ["export", "preferences", str(ref), str(tmp_path / "sets"), "--format", "datasets", *store]
    )
    assert result.stdout == f"{2 * n_pairs} member(s) of sets are in {tmp_path / 'sets'}\n"


def test_mistakes_have_a_message_and_a_code(tmp_path: Path) -> None:
    for words, code, message in (
        (["preferences-v1-0", "new"], 3, "there are no preferences 'preferences-v1-0' in"),
        (["preferences-v1-0", "new", "--format", "csv"], 2, "'csv' is not one of 'pickapic', 'datasets'"),
    ):
        result = CliRunner().invoke(app, ["export", "preferences", *words, "--root", str(tmp_path / "store")])
        assert (result.exit_code, message in result.stderr) == (code, True), result.output
        assert "Traceback" not in result.output
