"""Configurations as TOML: what is written is read again as the same."""

import re
import tomllib
from pathlib import Path

import pytest

from popalign_core.config import load_config, parse_config
from popalign_core.config.presets import PRESETS, preset
from popalign_core.config.spelling import choose_from
from popalign_core.config.toml_text import commented_toml, to_toml


@pytest.mark.parametrize("name", PRESETS)
def test_a_resolved_configuration_is_read_again_as_the_same(name: str, tmp_path: Path) -> None:
    path = tmp_path / "resolved.toml"
    path.write_text(to_toml(preset(name).model_dump(mode="json", exclude_none=True)), encoding="utf-8")
    assert load_config(path) == preset(name)


def test_every_kind_of_value_is_toml() -> None:
    document = {
        "text": 'a "quote", a \\ and a\nline\x7f',
        "number": 1e-08,
        "off": False,
        "list": ["a", 2, {"path": "x", "scale": 0.5}],
        "absent": None,
        "table": {"two words": {"α": 1}, "empty": {}},
    }
    wanted = {name: value for name, value in document.items() if value is not None}
    assert tomllib.loads(to_toml(document)) == wanted


@pytest.mark.parametrize("name", PRESETS)
def test_a_commented_configuration_is_its_preset_until_it_is_edited(name: str) -> None:
    text = commented_toml(name, preset(name), {})
    assert {each: value for each, value in tomllib.loads(text).items() if value} == {"preset": name}
    assert "# guidance_scale = " in text


def test_changes_are_set_and_comments_can_be_uncommented(tmp_path: Path) -> None:
    changes = {"training": {"beta": 30.0}, "systems": {"mine": {"model": {"lora": "x.safetensors"}}}}
    config = parse_config(preset("smoke").model_dump(exclude_none=True) | {"systems": changes["systems"]})
    text = commented_toml("smoke", config, changes)
    path = tmp_path / "mine.toml"
    path.write_text(text, encoding="utf-8")
    assert load_config(path).training.beta == 30
    assert load_config(path).systems["mine"].model == {"lora": "x.safetensors"}
    # what a reader would do: take away the mark in front of every field
    head, mark, tables = text.partition("[model]\n")
    preset_line = next(line for line in head.splitlines() if line.startswith("preset"))
    field = re.compile(r"# (?=[a-z_]+ = )")
    free = [field.sub("", line, count=1) for line in tables.splitlines()]
    path.write_text("\n".join([preset_line, mark, *free]) + "\n", encoding="utf-8")
    assert load_config(path).sampling == preset("smoke").sampling


def test_a_name_that_is_nearly_right_is_suggested() -> None:
    assert choose_from("trian", ["prompts", "train"]) == "did you mean 'train'? Or choose from prompts, train"
    assert choose_from("zzz", ["prompts", "train"]) == "choose from prompts, train"
