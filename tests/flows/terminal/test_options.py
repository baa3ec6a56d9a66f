"""Command-line words become a configuration, or a message that names what is wrong."""

import re
from pathlib import Path

import pytest

from flows.terminal.options import build_config, run_name
from popalign_core.config import parse_config
from popalign_core.config.presets import preset
from popalign_core.errors import ConfigError
from tasks.stages.report import ReportView


def test_settings_lie_over_the_preset() -> None:
    base, _ = build_config("smoke", None, [], None)
    config, runtime = build_config("smoke", None, ["training.beta=30", "training.objective=sft"], "elsewhere")
    assert (config.training.beta, config.training.objective) == (30.0, "sft")
    assert config.model_copy(update={"training": base.training}) == base
    assert runtime.root == "elsewhere"


def test_runtime_settings_leave_the_configuration_alone() -> None:
    base, _ = build_config("smoke", None, [], None)
    config, runtime = build_config("smoke", None, ["runtime.batch_size=7", "runtime.device=cpu"], None)
    assert config == base
    assert (runtime.batch_size, runtime.device) == (7, "cpu")


def test_a_file_may_start_from_a_preset_and_settings_lie_over_both(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "smoke"\n[training]\nbeta = 11\nn_steps = 3\n', encoding="utf-8")
    config, _ = build_config(None, path, ["training.beta=12"], None)
    assert (config.training.beta, config.training.n_steps) == (12.0, 3)


@pytest.mark.parametrize(
    ("preset", "settings", "message"),
    [
        ("nope", [], "nope"),
        ("smoke", ["training.betaa=3"], r"training\.betaa: unknown field; did you mean `beta`\?$"),
        ("smoke", ["training.beta=-3"], r"training: .*beta is -3\.0; give a number above 0, or 'auto'"),
        ("smoke", ["training.lora_rank=4", "training.trained_weights=conditioning"], "set one of the two"),
        ("smoke", ["training.beta"], "not field=value"),
        ("smoke", ["training..beta=3"], "not field=value"),
        ("smoke", ["training.beta.deep=3"], "'beta' is not a table"),
        ("smoke", ["sampling.n_steps=many"], r"sampling\.n_steps: .*valid integer.*, got 'many'"),
        ("smoke", ["sampling.guidance_scale=inf"], r"sampling\.guidance_scale: .*finite number, got inf"),
        ("smoke", ["evaluation.confidence=95"], r"evaluation\.confidence: .*less than 1, got 95"),
        ("smoke", ["runtime.batch_size=0"], r"runtime\.batch_size: .*greater than or equal to 1, got 0"),
        ("smoke", ["runtime.batch=3"], r"runtime\.batch: unknown field; did you mean `batch_size`\?$"),
        ("smoke", ["runtime.batch_size=many"], r"runtime\.batch_size: Input should be a valid integer.*, got 'many'$"),
        ("smoke", ["training.learning_rate=inf"], r"training\.learning_rate: .*finite number, got inf$"),
        ("smoke", ["sampling.n_steps=0"], r"1 problem\(s\):\n  sampling\.n_steps: Input should be greater .*, got 0$"),
    ],
)
def test_a_bad_word_is_named(preset: str, settings: list[str], message: str) -> None:
    with pytest.raises(ConfigError, match=message):
        build_config(preset, None, settings, None)


def test_a_preset_and_a_file_exclude_each_other(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="exclude each other"):
        build_config("smoke", tmp_path / "mine.toml", [], None)


def test_a_target_is_of_numbers_and_the_axis_alone_is_blamed(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    for share, message in (("nan", "finite number, got nan"), ("0.4", "target sums to 0.9; give shares")):
        path.write_text(
            'preset = "smoke"\n[[axes]]\nname = "tall"\nclasses = ["tall", "short"]\n'
            f"target = {{ tall = {share}, short = 0.5 }}\n",
            encoding="utf-8",
        )
        with pytest.raises(ConfigError, match=message) as caught:
            build_config(None, path, [], None)
        assert "1 problem(s)" in str(caught.value)
        assert "at least 1 item" not in str(caught.value)  # the list of axes is not what is wrong


def test_a_file_is_utf8_with_a_mark_or_without(tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_text('preset = "smoke"\n[prompts]\ntrain_subjects = ["bäcker"]\n', encoding="utf-8-sig")
    assert build_config(None, path, [], None)[0].prompts.train_subjects == ("bäcker",)
    path.write_bytes('preset = "smoke" # bäcker\n'.encode("latin-1"))
    with pytest.raises(ConfigError, match=r"mine\.toml is not TOML: .* save it as UTF-8"):
        build_config(None, path, [], None)


@pytest.mark.parametrize("preset", ['["smoke"]', '{ name = "smoke" }', "3"])
def test_a_preset_that_is_no_name_is_unknown(tmp_path: Path, preset: str) -> None:
    path = tmp_path / "mine.toml"
    path.write_text(f"preset = {preset}\n", encoding="utf-8")
    with pytest.raises(ConfigError, match=r"unknown preset .*; choose from portraits"):
        build_config(None, path, [], None)


def test_a_missing_file_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot read configuration .*gone\.toml"):
        build_config(None, tmp_path / "gone.toml", [], None)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'preset = "smoke"\n# caf\xe9\n', r"mine\.toml is not TOML: .*save it as UTF-8"),
        (b'preset = ["smoke"]\n', r"unknown preset \['smoke'\]; choose from"),
        (b'preset = "smoke"\n[sampling\n', r"mine\.toml is not TOML"),
        (b"[model]\nname = stabilityai/sdxl\n", r'line 2.*put text in quotes: name = "\.\.\."$'),
        (b"[prompts.llm]\napi_key_env = sk-1234\n", r"^((?!sk-1234).)*$"),
        (b"[sampling]\nslow = True\n", r"is not TOML: .*`popalign init` writes an example"),
        (
            b'preset = "smoke"\n[training]\nbeta = "ten"\n[sampling]\nwidth = "x"\nheight = "x"\n',
            r"3 problem\(s\):\n(  sampling\.(width|height): .*\n){2}"
            r"  training\.beta: Input should be a valid number or 'auto', got 'ten'$",
        ),
        (
            b'preset = "smoke"\n[attributes]\nclassifier = 5\n',
            r"1 problem\(s\):\n  attributes\.classifier: Input should be a valid string or a valid tuple, got 5$",
        ),
        (
            b'preset = "smoke"\n[[axes]]\nname = "x"\nclasses = ["a", "b"]\ntarget = { a = nan, b = 0.5 }\n',
            r"axes\.0\.target\.a: Input should be a finite number, got nan",
        ),
    ],
)
def test_a_file_that_cannot_be_meant_is_refused(content: bytes, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=message):
        build_config(None, path, [], None)


@pytest.mark.parametrize("name", ["portraits", "sdxl", "sdxl-turbo"])
def test_what_a_report_prints_is_a_configuration(name: str, tmp_path: Path) -> None:
    path, axes = tmp_path / "printed.JSON", [{"name": "age", "classes": ["young", "old"], "only_measured": True}]
    usual = preset(name).model_dump()
    printed = parse_config(usual | {
        "axes": [*usual["axes"], *axes],
        "prompts": usual["prompts"] | {"benchmarks": {"age": {"list": "ages", "n_images": 7}}},
    })  # fmt: skip
    path.write_text(ReportView.of(printed, {}).printed(), encoding="utf-8")
    config, _ = build_config(None, path, ["training.beta=7"], None)
    assert config.training.beta == 7
    assert config.model_copy(update={"training": printed.training}) == printed


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ("[training]", r"mine\.json is not JSON"),
        ("[1, 2]", r"mine\.json is not one JSON object but \[1, 2\]"),
        ('{"preset": "smoke", "training": {"n_steps": 0}}', r"mine\.json is invalid, 1 problem"),
    ],
)
def test_json_that_is_no_configuration_is_refused(content: str, message: str, tmp_path: Path) -> None:
    path = tmp_path / "mine.json"
    path.write_text(content, encoding="utf-8")
    with pytest.raises(ConfigError, match=message):
        build_config(None, path, [], None)


def test_run_names() -> None:
    assert run_name(None, None, None) == "portraits"
    assert run_name("smoke", None, None) == "smoke"
    assert run_name(None, Path("a/mine.toml"), None) == "mine"
    assert run_name("smoke", None, "third-try", ["training.beta=30"]) == "third-try"
    assert run_name("smoke", None, None, ["runtime.n_threads=1"], "-sweep") == "smoke-sweep"


def test_a_run_name_tells_changed_configurations_apart() -> None:
    names = {run_name("smoke", None, None, [word], "-sweep") for word in ("training.beta=30", "training.beta=20")}
    assert len(names) == 2
    assert all(re.fullmatch("smoke-sweep-[0-9a-f]{6}", name) for name in names)
    both = ["training.beta=30", "training.seed=1"]
    assert run_name("smoke", None, None, both) == run_name("smoke", None, None, both[::-1])


@pytest.mark.parametrize("name", ["../up", "a/b", ".hidden", "a\\b", "two words"])
def test_a_run_name_is_one_folder(name: str) -> None:
    with pytest.raises(ConfigError, match="not a folder name"):
        run_name(None, None, name)


@pytest.mark.parametrize(
    ("word", "told"),
    [
        ("samplng.width=64", r"samplng: unknown field; did you mean `sampling`\?"),
        ("training.probe.evry=2", r"training\.probe\.evry: unknown field; did you mean `every`\?"),
        ("prompts.benchmarks.mine.lst=a", r"prompts\.benchmarks\.mine\.lst: unknown field; did you mean `list`\?"),
        ("training.qqqq=1", r"training\.qqqq: unknown field$"),
    ],
)
def test_a_misspelt_field_names_the_one_that_is_like_it(word: str, told: str) -> None:
    with pytest.raises(ConfigError, match=told):
        build_config("smoke", None, [word], None)
