"""The same images of a comparison, read by other classifiers and other detectors."""

from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from image_files import write_csv
from onnx_files import write_colour_network
from portrait_files import needs_portraits, portrait

from flows.plan.compare_systems import plan_systems
from flows.plan.execution import call_directly, run_plan
from flows.plan.runs import import_external_images
from flows.plan.sweep import plan_sweep
from popalign_core.attributes.detector import FaceDetector
from popalign_core.config import AttributesConfig, PipelineConfig, RuntimeConfig, SystemConfig, parse_config
from popalign_core.errors import ConfigError
from storage.formats.images import encode_png
from tasks.common.stage_object import open_store
from tasks.stages.page_view import hashed_configuration

TEXTS = ("a photo of a judge", "a photo of a dancer")


def with_readings(config: PipelineConfig, **readings: dict[str, Any]) -> PipelineConfig:
    return parse_config(
        config.model_dump(exclude_none=True)
        | {"evaluation": config.evaluation.model_dump(exclude_none=True) | {"readings": readings}},
        origin="test",
    )


def compared(names: list[str], config: PipelineConfig, runtime: RuntimeConfig) -> tuple[dict[str, pd.DataFrame], str]:
    ref = run_plan(plan_systems(names, config, runtime).planned, runtime, call_directly())["comparison"]
    store = open_store(runtime)
    tables = {name: store.read_table(ref, name) for name in ("metrics", "readings")}
    return tables, (Path(store.localize(ref)) / "comparison.html").read_text()


@pytest.mark.usefixtures("finished")
def test_every_reading_is_a_row_beside_the_configured_one(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    """A classifier that must be surer leaves faces out, and says nothing else of the others."""
    config = with_readings(tiny_config, sure={"min_probability": 0.95})
    tables, page = compared(["base", "cads"], config, tiny_runtime)
    readings, metrics = tables["readings"], tables["metrics"]
    assert readings.groupby("system")["reading"].unique().map(list).to_dict() == {
        name: ["configured", "sure"] for name in ("base", "cads")
    }
    key = ["system", "benchmark", "metric", "axis"]
    configured = readings[readings["reading"] == "configured"].set_index(key)["value"]
    pd.testing.assert_series_equal(configured, metrics.set_index(key)["value"].loc[configured.index])
    assert {"discrepancy_pooled", "discrepancy_per_prompt", "no_face_share", "recall", "share:male"} == {
        name for name in configured.index.get_level_values("metric") if name != "share:female"
    }
    numbers = readings[readings["metric"] == "share:male"].set_index(["system", "reading"])["n"]
    assert (numbers.xs("sure", level="reading") <= numbers.xs("configured", level="reading")).all()
    assert "Other classifiers and detectors" in page
    plain, _ = compared(["base", "cads"], tiny_config, tiny_runtime)
    assert plain["readings"].empty
    pd.testing.assert_frame_equal(plain["metrics"], metrics)


def test_readings_that_do_not_fit_are_refused_by_name(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    for readings, message in (
        ({"yu": {"detector_backed": "yunet"}}, r"(?s)evaluation\.readings\.yu.*detector_backed.*detector_backend"),
        ({"eyes": {"classifier": "eyes"}}, r"(?s)evaluation\.readings\.eyes.*\['eyes'\] is not known"),
        ({"sure": {"min_probability": float("nan")}}, r"(?s)readings\.sure\.min_probability: .*finite"),
        ({"second": {}}, r"\['second'\] have the names of those by"),
        ({"configured": {}}, r"\['configured'\] have the names of those by"),
        ({"a:b": {}}, "readings"),
    ):
        with pytest.raises(ConfigError, match=message):
            with_readings(tiny_config, **readings)


@pytest.mark.usefixtures("finished")
def test_a_reading_by_the_name_of_a_node_takes_no_other_place(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    named = with_readings(tiny_config, eval={"min_probability": 0.95})
    plain, nodes = (
        {node.node: node.ref for node in plan_systems(["base", "cads"], config, tiny_runtime).planned}
        for config in (tiny_config, named)
    )
    assert {name: nodes[name] for name in plain if name != "comparison"} == {
        name: ref for name, ref in plain.items() if name != "comparison"
    }
    assert set(nodes) - set(plain) == {"attributes-reading-eval:base", "attributes-reading-eval:cads"}


def test_sweeps_read_once(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    config = with_readings(tiny_config, sure={"min_probability": 0.95})
    planned = plan_sweep({"sampling.guidance_scale": ["1", "2"]}, config, tiny_runtime)
    assert not [node.node for node in planned.systems.planned if "sure" in node.node]


def test_where_a_readings_classifier_lies_is_not_in_a_pages_key(tiny_config: PipelineConfig, tmp_path: Path) -> None:
    pages = []
    for place in ("here", "there"):
        people = {"kind": "people", "path": str(tmp_path / place), "axes": {"gender": ["male", "female"]}}
        config = with_readings(tiny_config, crowd={"classifier": "crowd", "classifiers": {"crowd": people}})
        pages.append(hashed_configuration(config))
    assert pages[0] == pages[1]
    assert pages[0]["evaluation"]["readings"]["crowd"]["classifier"] == "crowd"


@needs_portraits
def test_real_portraits_with_and_without_a_detector(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """One network behind OpenCV's detector and on whole images; for the former a blank wall has no face."""
    people = [portrait(f"{sex}/256/{i}.jpg") for sex in ("male", "female") for i in range(6)]
    people += [np.full((256, 256, 3), 120, np.uint8)] * 2
    systems = {}
    for name, order in (("one", 1), ("other", -1)):
        rows = [(TEXTS[i % 2], encode_png(pixels)) for i, pixels in enumerate(people[::order])]
        folder = write_csv(tmp_path / name, rows)
        sized = tiny_config.model_copy(
            update={"sampling": tiny_config.sampling.model_copy(update={"width": 256, "height": 256})}
        )
        imported = import_external_images([folder], sized, tiny_runtime, call=call_directly())["imported"]
        systems[name] = SystemConfig(images=imported.key)
    gender = {"male": "male", "female": "female"}
    brightness = np.repeat([[-20.0, 20.0]], 3, axis=0)
    network = write_colour_network(tmp_path / "net.onnx", brightness, [30.0, -30.0], (16, 16))
    described = {
        "kind": "onnx", "path": str(network), "labels": list(gender), "axes": {"gender": gender}, "mean": (0, 0, 0),
        "std": (1, 1, 1),
    }  # fmt: skip
    fields = {"classifier": "tone", "detector_backend": "opencv", "classifiers": {"tone": described}}
    config = sized.model_copy(update={"systems": systems, "attributes": AttributesConfig.model_validate(fields)})
    config = with_readings(config, whole={"detector_backend": "skip"})
    readings = compared(["one", "other"], config, tiny_runtime)[0]["readings"]
    detector = FaceDetector(config.attributes)
    missed = np.mean([detector.detect(pixels)[0].n_faces != 1 for pixels in people])
    found = readings[readings["metric"] == "no_face_share"].set_index(["system", "reading"])["value"]
    for system in systems:
        assert found[system, "configured"] == pytest.approx(missed)
        assert found[system, "whole"] == 0
    assert 2 / 14 <= missed < 0.5
    shares = readings[readings["metric"] == "share:male"].set_index(["system", "reading"])["value"]
    assert shares["one", "configured"] != shares["one", "whole"]
