"""Configuration files as they come: every fault is one message and exit code 2."""

import os
from pathlib import Path

import pytest

from flows.terminal.options import build_config, parse_setting, parse_sweep, run_name
from popalign_core.config import load_config, parse_config
from popalign_core.errors import ConfigError

DEEP = 200
BAD = {
    "a.toml": ("preset = 'smoke'\n[" + ".".join("a" * 50_000) + "]", "more than 64 dots"),
    "b.toml": ("preset = 'smoke'\nx = " + "{y = " * DEEP + "1" + "}" * DEEP, "nested"),
    "c.toml": ("preset = 'smoke'\nsampling.width = " + "9" * 5000, "thousands of digits"),
    "d.json": ("[" * 100_000, "nested too deep"),
    "e.json": ('{"preset": "smoke", "model": {"name": "a\\u0000b"}}', r"'model.name' holds a NUL"),
    "f.json": ('{"preset": "smoke", "model": {"name": "\\ud800"}}', "surrogates"),
    "l.json": ('{"preset": "smoke", "preset": "sdxl"}', "has the key 'preset' more than once in one object"),
    "m.json": ('{"preset": "smoke", "sampling": {"seed": 1, "eta": 0, "seed": 2}}', "the key 'seed' more than once"),
    "n.json": ('{"preset": "smoke", "axes": ["gender", {"name": "a", "name": "b"}]}', "the key 'name' more than once"),
    "g.toml": ("preset = 3", "preset"),
    "h.json": ('{"preset": ["smoke"]}', "preset"),
    "i.json": ('{"preset": "smoke", "systems": {"a\\u0000": {}}}', "holds a NUL"),
}


@pytest.mark.parametrize("name", BAD)
def test_a_file_that_cannot_be_one(name: str, tmp_path: Path) -> None:
    text, problem = BAD[name]
    (tmp_path / name).write_text(text, encoding="utf-8")
    with pytest.raises(ConfigError, match=problem):
        load_config(tmp_path / name)


def test_places_that_are_no_files(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe.toml")
    for place, problem in (
        (tmp_path / "pipe.toml", "it is a pipe"),
        (tmp_path, "Is a directory"),
        (tmp_path / ("x" * 5000), "File name too long"),
        (Path("a\0b"), "null"),
    ):
        with pytest.raises(ConfigError, match=problem) as caught:
            load_config(place)
        assert len(str(caught.value)) < 1000


def test_what_another_command_writes_is_read(tmp_path: Path) -> None:
    read, write = os.pipe()
    os.write(write, b"preset = 'smoke'\n")
    os.close(write)
    assert load_config(Path(f"/dev/fd/{read}")) == load_config_from(tmp_path, "preset = 'smoke'\n")
    os.close(read)


def load_config_from(folder: Path, text: str) -> object:
    (folder / "c.toml").write_text(text)
    return load_config(folder / "c.toml")


@pytest.mark.parametrize(
    "word",
    [".".join("a" * 50_000) + "=1", "training.beta=" + "[" * 100_000, 'model.name="\\u0000"'],
)
def test_words_on_the_command_line(word: str) -> None:
    with pytest.raises(ConfigError) as caught:
        build_config("smoke", None, [word], None)
    assert len(str(caught.value)) < 1000


def test_values_that_are_no_toml_are_text() -> None:
    assert parse_setting("training.objective=sft") == ("training.objective", "sft")
    assert parse_setting("a=" + "[" * 10_000) == ("a", "[" * 10_000)
    assert parse_sweep(["a=" + "9" * 5000]) == {"a": ["9" * 5000]}


def test_a_run_name_fits_a_folder() -> None:
    with pytest.raises(ConfigError, match="at most 200"):
        run_name(None, None, "a" * 300)


def test_a_document_from_elsewhere() -> None:
    with pytest.raises(ConfigError, match=r"'prompts\.train_subjects\.0' holds a NUL"):
        parse_config({"prompts": {"train_subjects": ["a\0"]}})
