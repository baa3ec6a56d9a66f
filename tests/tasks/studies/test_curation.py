"""Studies of curating: out of a run, through the chain, to sets that training takes."""

from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from curation_worlds import RUN, let_judge, make_curation, make_run, record

from flows.plan.execution import call_directly
from flows.plan.runs import run_stage
from popalign_core.config import PipelineConfig, PreferencesConfig, RuntimeConfig
from popalign_core.config.presets import preset
from popalign_core.errors import InputError
from storage.reviews.chain_steps import add_step, drop_step, end_chain, read_classes, read_steps
from storage.reviews.review_tables import DONE, ChainStep
from storage.reviews.votes import ReviewDatabase
from storage.store import Store
from tasks.common.stage_object import open_store
from tasks.studies.curation import create_curation, curated_table, publish_curated
from tasks.studies.study_records import invite
from tasks.studies.study_results import add_to_report, curation_results, export_study, results_section


def step(asked_id: int, number: int, *, taken: bool = True, slot: int = 0) -> ChainStep:
    return ChainStep(asked_id=asked_id, number=number, slot=slot, replacement=0, is_accepted=taken, seconds=1.0)


@pytest.mark.parametrize(("set_size", "most"), [(10, 5), (5, 3)])
def test_a_simulated_judge_reaches_the_target_from_nine_men_in_ten(tmp_path: Path, set_size: int, most: int) -> None:
    """From 1 woman of 10, 21 of 50 candidates: 1/(.9*.42) + 1/(.8*.40) + 1/(.7*.38) + 1/(.6*.36) = 14.2 steps."""
    database = make_curation(tmp_path, n_prompts=10, set_size=set_size)
    let_judge(database, "sets", invite(database, database.study("sets")))
    results = curation_results(database, "sets")
    assert results.sets["end"].tolist() == ["finished"] * 10
    table = curated_table(database, "sets")
    seen = {k: v for _, pair in _pairs(database) for k, v in read_classes(database, pair).items()}
    women = table["image_id"].map(lambda image_id: seen[image_id]["gender"] == "female").groupby(table["set_id"]).sum()
    assert set(women) <= {set_size - most, most}
    assert results.sets["discrepancy_end"].to_numpy() == pytest.approx(results.floor)
    start = 1 - results.sets["discrepancy_start"].mean() / np.sqrt(2) / 0.5  # share of women, twice over
    assert start == pytest.approx(2 * 0.1, abs=0.12)
    steps = results.sets["n_accepted"] + results.sets["n_undone"]
    assert results.sets["n_accepted"].between(0, most).all()
    assert {10: 9, 5: 2}[set_size] < steps.mean() < {10: 20, 5: 9}[set_size]
    section = results_section(database, "sets")
    assert f"A finished set took {steps.mean():.1f} steps in the mean" in section
    assert "Mean discrepancy of the finished sets by step" in section
    assert "<svg" in section


def _pairs(database: ReviewDatabase) -> list[tuple[str, str]]:
    from storage.reviews.chain_steps import read_asked

    return [(pair.prompt_id, pair.pair_id) for _, pair in read_asked(database, "sets")]


def test_a_chain_starts_as_the_model_draws_and_all_else_may_come_in(tmp_path: Path) -> None:
    database = make_curation(tmp_path, set_size=10)
    turn = database.turn(invite(database, database.study("sets")).rater_id)
    assert turn is not None
    images = Store(str(tmp_path / "store"))
    ref = next(ref for ref in images.list_artifacts() if ref.stage == "sample")
    owner = images.read_table(ref, "images", ["image_id", "prompt_id"]).set_index("image_id")["prompt_id"]
    assert set(owner[turn.pair.images_a]) == {turn.pair.prompt_id}
    assert (len(turn.pair.images_a), len(turn.pair.images_b)) == (10, 10 + 40)
    assert len({*turn.pair.images_a, *turn.pair.images_b}) == 60


def test_a_step_is_there_once_and_late_ones_are_refused(tmp_path: Path) -> None:
    database = make_curation(tmp_path)
    one = invite(database, database.study("sets"))
    turn = database.turn(one.rater_id)
    assert turn is not None
    asked_id = turn.asked.asked_id
    assert add_step(database, one.rater_id, step(asked_id, 0))
    assert add_step(database, one.rater_id, step(asked_id, 0)), "the same again is the same"
    with pytest.raises(InputError, match="has votes under its instructions"):
        database.set_instructions("sets", "# New")
    assert not add_step(database, one.rater_id, step(asked_id, 0, taken=False))
    assert not add_step(database, one.rater_id, step(asked_id, 2)), "there is no step before it"
    assert add_step(database, one.rater_id, step(asked_id, 1, taken=False))
    assert not drop_step(database, one.rater_id, asked_id, 0), "not the last one"
    assert drop_step(database, one.rater_id, asked_id, 1)
    assert not drop_step(database, one.rater_id, asked_id, 1), "twice sent, once done"
    assert not end_chain(database, one.rater_id, asked_id, 2, DONE, 1.0), "another set than the curator saw"
    assert end_chain(database, one.rater_id, asked_id, 1, DONE, 1.0)
    assert end_chain(database, one.rater_id, asked_id, 1, DONE, 1.0)
    assert not add_step(database, one.rater_id, step(asked_id, 1)), "the set is finished"
    assert not drop_step(database, one.rater_id, asked_id, 0)
    assert [(each.number, each.is_accepted) for each in read_steps(database, asked_id)] == [(0, True)]
    with pytest.raises(InputError, match="not one of this curator's"):
        add_step(database, "another", step(asked_id, 1))


def test_finished_sets_are_published_by_their_content(tmp_path: Path) -> None:
    database, store = make_curation(tmp_path, n_prompts=3), Store(str(tmp_path / "store"))
    with pytest.raises(InputError, match="no set of study 'sets' is finished"):
        publish_curated(database, store, "sets")
    rater = invite(database, database.study("sets"))
    first = database.turn(rater.rater_id)
    assert first is not None
    assert end_chain(database, rater.rater_id, first.asked.asked_id, 0, DONE, 1.0)
    one = publish_curated(database, store, "sets")
    assert publish_curated(database, store, "sets") == one
    table = store.read_table(one, "curated")
    assert table["image_id"].tolist() == first.pair.images_a
    assert rater.rater_id not in table.to_csv()
    let_judge(database, "sets", rater)
    more = publish_curated(database, store, "sets")
    assert more != one
    assert store.read_table(more, "curated")["set_id"].nunique() == 3
    assert export_study(database, "sets", tmp_path / "sets.csv") == 30


def test_prompts_with_too_few_images_are_left_out_and_counted(tmp_path: Path) -> None:
    store = make_run(tmp_path / "store", n_neutral=7)
    database = ReviewDatabase(f"sqlite:///{tmp_path / 'x.sqlite'}")
    with pytest.raises(InputError, match=r"none of the 2 prompt\(s\) of run 'run' has images for a set of 5"):
        create_curation(database, store, "sets", RUN, settings={"set_size": 5})
    assert create_curation(database, store, "sets", RUN, settings={"set_size": 4}) == (2, 0)


def test_the_report_of_the_run_gets_a_section_once(tmp_path: Path) -> None:
    database, store = make_curation(tmp_path), Store(str(tmp_path / "store"))
    with pytest.raises(InputError, match=r"has no run with a report \('run'\)"):
        add_to_report(database, store, "sets")
    folder = store.run_folder(RUN)
    folder.write_text("report.html", "<main><section><h2>Verdict</h2></section></main><footer></footer>")
    let_judge(database, "sets", invite(database, database.study("sets")))
    for _ in range(2):
        assert add_to_report(database, store, "sets") == f"{folder.url}/report.html"
    page = folder.read_text("report.html")
    assert page is not None
    assert page.count("Human judgements: sets") == 1
    assert page.startswith("<main><section><h2>Verdict</h2></section><section")
    assert page.endswith("</section></main><footer></footer>")


def ten_sets(config: PipelineConfig, runtime: RuntimeConfig, folder: Path, set_size: int, n_raters: int) -> str:
    """Sample, read, curate by simulated judges, publish: the key of 10 finished sets."""
    nodes = {
        node: run_stage(node, config, runtime, call=call_directly()) for node in ("identities", "sample", "attributes")
    }
    store = open_store(runtime)
    record(store, nodes, config)
    database = ReviewDatabase(f"sqlite:///{folder / 'reviews.sqlite'}")
    create_curation(database, store, "sets", RUN, settings={"set_size": set_size, "n_raters": n_raters})
    for _ in range(n_raters):
        rater = invite(database, database.study("sets"))
        while turn := database.turn(rater.rater_id):
            for number in range(3):  # a person who takes every other picture
                add_step(
                    database, rater.rater_id, step(turn.asked.asked_id, number, taken=number != 1, slot=number % 2)
                )
            assert end_chain(database, rater.rater_id, turn.asked.asked_id, 3, DONE, 1.0)
    ref = publish_curated(database, store, "sets")
    assert store.read_table(ref, "curated")["set_id"].nunique() == 10
    return ref.key


def train_on(key: str, config: PipelineConfig, runtime: RuntimeConfig) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The preferences and the training log of strategy `human`."""
    preferences = {**config.preferences.model_dump(), "strategy": "human", "curated": key}
    human = PipelineConfig.model_validate({**config.model_dump(), "preferences": preferences})
    train = run_stage("train", human, runtime, call=call_directly())
    store, ref = open_store(runtime), run_stage("preferences", human, runtime, call=call_directly())
    retained = store.read_table(ref, "retained")
    assert set(retained["kind"]) <= {"specific", "generic"}, "no neutral caption is held at the reference"
    return store.read_table(ref, "preferences"), store.read_table(train, "training_log")


def test_ten_sets_made_by_people_train_the_tiny_model(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    key = ten_sets(tiny_config, tiny_runtime, tmp_path, set_size=2, n_raters=5)
    preferences, log = train_on(key, tiny_config, tiny_runtime)
    sides = preferences.groupby(["set_id", "role"]).size().unstack()
    assert len(sides) == 10
    assert set(sides["preferred"]) == {2}
    assert sides["dispreferred"].between(1, 2).all()
    both = preferences.groupby("prompt_id")["role"].agg(set)
    assert both.tolist() == [{"preferred", "dispreferred"}] * 2
    roles = preferences.groupby("image_id")["role"].nunique()
    assert set(roles) == {1}, "no image stands on both sides"
    assert log["step"].max() == tiny_config.training.n_steps
    with pytest.raises(InputError, match=r"no curated sets 'curated-v1-0'.*`popalign study publish NAME` makes them"):
        train_on("curated-v1-0", tiny_config, tiny_runtime)


@pytest.mark.slow
def test_ten_sets_made_by_people_train_the_embedded_model(tmp_path: Path) -> None:
    smoke = preset("smoke")
    config = smoke.model_copy(
        update={
            "prompts": smoke.prompts.model_copy(update={"train_subjects": smoke.prompts.train_subjects[:2]}),
            "preferences": PreferencesConfig(n_neutral=9, n_specific=1, set_size=6),
            "training": smoke.training.model_copy(update={"n_steps": 10, "n_warmup_steps": 2, "n_pairs": 4}),
        }
    )
    runtime = RuntimeConfig(root=str(tmp_path / "store"), device="cpu", trackers=())
    key = ten_sets(config, runtime, tmp_path, set_size=6, n_raters=5)
    preferences, log = train_on(key, config, runtime)
    assert preferences["set_id"].nunique() == 10
    assert log["step"].max() == 10
    assert np.isfinite(log["value"]).all()


def test_a_strategy_human_needs_its_sets_and_no_other_takes_any() -> None:
    with pytest.raises(ValueError, match="strategy 'human' with curated None"):
        PreferencesConfig(strategy="human")
    with pytest.raises(ValueError, match="strategy 'balanced' with curated 'curated-v1-0'"):
        PreferencesConfig(curated="curated-v1-0")
