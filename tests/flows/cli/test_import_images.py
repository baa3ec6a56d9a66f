"""Images from the command line: a folder or Parquet files go in, a key comes out."""

from pathlib import Path

import pytest
from image_files import Named, write_csv, write_parquet
from pair_files import picture
from typer.testing import CliRunner, Result

from flows.cli.app import app
from flows.plan.planning import plan_run
from flows.plan.steps import PROMPT_STEPS
from flows.terminal.options import build_config
from storage.store import ArtifactRef, Store
from tasks.stages.imported import find_imported

ROWS: list[Named] = [("a photo of a judge", picture(90, seed=n)) for n in range(3)] + [("a cat", picture(40))]


@pytest.fixture
def options(tmp_path: Path) -> list[str]:
    return ["--preset", "smoke", "--root", str(tmp_path / "store")]


def invoke(*words: str) -> Result:
    return CliRunner().invoke(app, list(words))


def test_a_key_comes_out_alone_and_the_rest_is_said_beside_it(tmp_path: Path, options: list[str]) -> None:
    cat = "a photo of a cat"
    paths = [write_csv(tmp_path / "pictures", ROWS), write_parquet(tmp_path / "more.parquet", [(cat, picture(7))])]
    result = invoke("import", "images", *map(str, paths), *options)
    assert result.exit_code == 0, result.output
    # 2 neutral ones, 3 generic ones, and 2 genders x 3 races of each neutral one
    summary = "4 image(s) of 2 of 17 evaluation prompts; dropped: 1 no evaluation prompt\n"
    assert summary in result.stderr
    store, key = Store(str(tmp_path / "store")), result.stdout.strip()
    assert result.stdout == f"{key}\n"
    assert store.is_published(ArtifactRef("imported", key))

    config, runtime = build_config("smoke", None, [], store.root)
    prompts = plan_run(config, runtime, PROMPT_STEPS).refs["benchmarks"]
    assert find_imported(store, key, prompts, config).key == key

    again = invoke("import", "images", *map(str, reversed(paths)), *options)
    assert (again.stdout, summary in again.stderr) == (f"{key}\n", True)
    smaller = invoke("import", "images", *map(str, paths), *options, "--set", "sampling.width=32")
    assert smaller.exit_code == 0
    assert smaller.stdout.strip() != key


def test_what_is_left_out_is_said_and_kept(tmp_path: Path, options: list[str]) -> None:
    folder = tmp_path / "pictures" / "a photo of a judge"
    folder.mkdir(parents=True)
    for name, kind in (("0.png", "PNG"), ("1.jfif", "JPEG"), ("2.avif", "AVIF"), ("3", "BMP"), ("4.jpg", "TIFF")):
        (folder / name).write_bytes(picture(90, seed=len(name), kind=kind))
    for name in ("notes.txt", "index.html", ".DS_Store"):
        (folder / name).write_text("text")
    (folder / "5.heic").write_bytes(b"what PIL has no plugin for")
    result = invoke("import", "images", str(folder.parent), *options)
    assert result.exit_code == 0, result.output
    assert "5 image(s) of 1 of 17 evaluation prompts; dropped: 2 not an image, 1 undecodable image\n" in result.stderr
    again = invoke("import", "images", str(folder.parent), *options)
    assert again.stdout == result.stdout
    (folder / "notes.txt").unlink()
    fewer = invoke("import", "images", str(folder.parent), *options)
    assert "dropped: 1 not an image, 1 undecodable image\n" in fewer.stderr
    assert fewer.stdout != result.stdout


def test_mistakes_have_a_message_and_a_code(tmp_path: Path, options: list[str]) -> None:
    strange = write_csv(tmp_path / "strange", [("a hat", picture(9))])
    for words, code, message in (
        (["/not/there"], 3, "there is nothing at /not/there; give a folder of images or a Parquet file"),
        ([str(strange)], 3, "they name 'a hat'; evaluation prompts are 'a photo of a judge', "),
        ([], 2, "Missing argument 'PATH...'"),
    ):
        result = invoke("import", "images", *words, *options)
        assert (result.exit_code, message in result.stderr, result.stdout) == (code, True, ""), result.output
        assert "Traceback" not in result.output
