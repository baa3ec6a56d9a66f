"""The gate: a model is evaluated once, judged by its intervals, and the exit code says how it went."""

import json
from pathlib import Path
from typing import Any

import pytest
from read_only import read_only
from typer.testing import CliRunner, Result

from flows.cli.app import app
from flows.plan.check import check_model, find_model
from flows.plan.execution import call_directly
from popalign_core.config import Axis, PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError, MissingWeightsError
from popalign_core.evaluation.thresholds import Threshold
from tasks.common.stage_object import open_store


def no_call(node: Any, runtime: Any) -> Any:
    raise AssertionError(f"{node.node} was run")


def test_a_model_is_evaluated_once_and_judged_by_its_leaderboard_rows(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    model, bars = tiny_config.model.name, [Threshold("max-discrepancy", 0.8), Threshold("min-recall", 0.99, "gender")]
    found, _ = check_model(model, bars, tiny_config, tiny_runtime, call=call_directly())
    # a discrepancy of two classes is .707 at most; the reader guesses, so that nobody's recall is .99
    assert [(each.subject, each.verdict) for each in found] == [("gender", "met"), ("gender", "missed")]
    assert check_model(model, bars, tiny_config, tiny_runtime, call=no_call)[0] == found


def test_a_bar_on_what_is_not_there_is_refused_before_anything_runs(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    age = Axis(name="age", classes=("young", "old"), only_measured=True)
    config = tiny_config.model_copy(update={"axes": (*tiny_config.axes, age)})
    for kind, axis, known in (
        ("max-discrepancy", "race", "gender"),
        ("max-discrepancy", "all", "gender"),
        ("max-per-prompt", "age", "gender"),  # measured on benchmarks of its own alone
        ("min-recall", "race", "gender, all"),
    ):
        with pytest.raises(ConfigError, match=f"--{kind} names '{axis}'; choose from {known}$"):
            check_model("portraits", [Threshold(kind, 0.2, axis)], config, tiny_runtime, call=no_call)


def test_a_run_stands_for_the_model_it_trained(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, finished: None
) -> None:
    found = find_model("run", tiny_runtime)
    store = open_store(tiny_runtime)
    (trained,) = (ref for ref in store.list_artifacts() if ref.stage == "train")
    assert (found.name, found.folder) == ("run", store.localize(trained))
    assert find_model(tiny_config.model.name, tiny_runtime).folder == Path(tiny_config.model.name)
    with pytest.raises(MissingWeightsError, match=r"model 'yours' is not a folder or a .* a run's name"):
        find_model("yours", tiny_runtime)


def test_what_a_run_has_sampled_is_not_sampled_again_for_its_check(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, finished: None
) -> None:
    made = []

    def call(node: Any, runtime: RuntimeConfig) -> Any:
        made.extend([] if node.is_hit else [node.node])
        return call_directly()(node, runtime)

    found, _ = check_model("run", [Threshold("max-discrepancy", 0.8)], tiny_config, tiny_runtime, call=call)
    assert made == ["evaluate:checkpoint"]
    assert [each.verdict for each in found] == ["met"]
    # by another configuration there is something to sample
    made.clear()
    more = tiny_config.model_copy(update={"evaluation": tiny_config.evaluation.model_copy(update={"n_neutral": 7})})
    check_model("run", [Threshold("max-discrepancy", 0.8)], more, tiny_runtime, call=call)
    assert made[0] == "sample-eval:checkpoint"


@pytest.fixture(scope="module")
def root(tmp_path_factory: pytest.TempPathFactory) -> str:
    return str(tmp_path_factory.mktemp("checked"))


def check(root: str, *words: str) -> Result:
    return CliRunner().invoke(app, ["check", "portraits", "--preset", "smoke", "--root", root, *words])


def test_the_exit_code_says_whether_a_bar_is_missed(root: str) -> None:
    passed = check(root, "--max-discrepancy", "1.0", "--min-clip", "1")
    assert passed.exit_code == 0, passed.output
    assert [line.split()[:3] for line in passed.stdout.splitlines()] == [
        ["ok", "max-discrepancy", "1"],
        ["ok", "max-discrepancy", "1"],
        ["ok", "min-clip", "1"],
        ["ok", "min-clip", "1"],
        ["4", "of", "4"],
    ]
    assert passed.stderr.endswith("too. Do not judge a model by them.\n")  # of the preset smoke
    missed = check(root, "--max-discrepancy", "gender=1.0", "--min-clip", "generic=100")
    assert missed.exit_code == 9
    assert "MISSED        min-clip generic=100" in missed.stdout
    assert "portraits fails 1 of 2 thresholds: min-clip generic=100 on generic" in missed.stderr


def test_what_cannot_be_told_passes_unless_strict(root: str) -> None:
    document = json.loads(check(root, "--min-clip", "neutral=1", "--json").stdout)
    assert (document["verdict"], document["n_proven"], document["n_thresholds"]) == ("passed", 1, 1)
    (said,) = document["judgements"]
    assert (said["threshold"], said["verdict"], said["bound"], said["subject"]) == (
        "min-clip neutral=1",
        "met",
        1.0,
        "neutral",
    )
    inside = f"neutral={said['value']:.6f}"
    proven = ("--min-clip", "generic=1")
    beside, strict = (check(root, "--min-clip", inside, *proven, *words) for words in ((), ("--strict",)))
    assert (beside.exit_code, strict.exit_code) == (0, 9)
    assert beside.stdout.startswith("cannot tell   min-clip neutral=")
    assert "evaluate more images" in beside.stdout
    assert beside.stdout.endswith("1 of 2 thresholds proven\n")


def test_where_nothing_is_proven_only_lenience_passes(root: str) -> None:
    (said,) = json.loads(check(root, "--min-clip", "neutral=1", "--json").stdout)["judgements"]
    inside = ("--min-clip", f"neutral={said['value']:.6f}")
    alone, lenient, document = check(root, *inside), check(root, *inside, "--lenient"), check(root, *inside, "--json")
    assert (alone.exit_code, lenient.exit_code, document.exit_code) == (9, 0, 9)
    assert "portraits is not proven to meet any of the 1 thresholds" in alone.stderr
    assert lenient.stdout.endswith("0 of 1 thresholds proven\n")
    assert json.loads(document.stdout)["verdict"] == "unproven"
    both = check(root, *inside, "--min-clip", "generic=100", "--lenient")
    assert (both.exit_code, "fails 1 of 2" in both.stderr) == (9, True)  # what is missed stays missed


def test_a_model_is_judged_again_from_an_archive_that_can_only_be_read(root: str) -> None:
    bars = ("--max-discrepancy", "1.0", "--min-clip", "1")
    first = check(root, *bars)
    with read_only(Path(root)):
        again = check(root, *bars)
        assert (again.exit_code, again.stdout) == (0, first.stdout)
        words = ("--preset", "smoke", "--root", root)
        assert CliRunner().invoke(app, ["plan", *words]).exit_code == 0
        assert "are intact" in CliRunner().invoke(app, ["verify", "--root", root]).stdout
        refused = CliRunner().invoke(app, ["stage", "train", *words])
        assert refused.exit_code == 5
        assert "give another --root" in refused.stderr


def test_wrong_bars_are_a_wrong_command_line(root: str) -> None:
    for words, message in (
        ((), "there is nothing to check"),
        (("--min-recall", "much"), "--min-recall 'much' is not a threshold"),
        (("--max-no-face", "gender=0.1"), "--max-no-face names 'gender'; choose from neutral"),
    ):
        result = check(root, *words)
        assert (result.exit_code, message in result.stderr) == (2, True), result.output
