"""A stage as one object: view, key, hit, build, publish, and errors with their place."""

from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any, Self

import pandas as pd
import pytest

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from storage.store import ArtifactRef, Build
from tasks.common.stage_object import (
    Inputs,
    Progress,
    Request,
    Stage,
    View,
    drop_fields,
    keep_fields,
    open_store,
    reference,
)

PROMPTS = ArtifactRef("prompts", "prompts-v1-abc")


class SeedView(View):
    """The sampler's seed, and a file by its content."""

    seed: int
    file: Path | None = None

    @classmethod
    def of(cls, config: PipelineConfig, inputs: Mapping[str, ArtifactRef], *, file: Path | None = None) -> Self | None:
        return cls(seed=config.sampling.seed, file=file) if config.sampling.seed else None

    def hashed(self) -> dict[str, Any]:
        return {"seed": self.seed} | ({} if self.file is None else {"file": self.file.read_text()})


def write_drops(view: SeedView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    build.write_table("drops", pd.DataFrame({"stage": ["drops"], "reason": ["none"], "n": [view.seed]}))
    on_progress(1, 1)


def never(view: SeedView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
    raise AssertionError("built although published")


DROPS = Stage("drops", "1", SeedView.of, write_drops, inputs=("prompts",), optional=("sample:*",))


def asked(config: PipelineConfig, stage: Stage[SeedView] = DROPS, **arguments: Any) -> Request[SeedView]:
    request = stage.request(config, prompts=PROMPTS, **arguments)
    assert isinstance(request, Request)
    return request


def seeded(config: PipelineConfig, seed: int) -> PipelineConfig:
    return config.model_copy(update={"sampling": config.sampling.model_copy(update={"seed": seed})})


def test_a_miss_builds_and_the_next_request_is_a_hit(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    seen: list[tuple[int, int]] = []
    request = asked(seeded(tiny_config, 3))
    first = DROPS.make(request, tiny_runtime, lambda done, total: seen.append((done, total)))
    assert replace(DROPS, fill=never).make(request, tiny_runtime) == first
    assert first == reference(open_store(tiny_runtime), request)
    assert open_store(tiny_runtime).read_table(first, "drops")["n"].tolist() == [3]
    assert seen == [(1, 1)]


def test_the_manifest_holds_what_the_key_is_a_hash_of(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    ref = DROPS(PROMPTS, config=seeded(tiny_config, 3), runtime=tiny_runtime)
    payload = open_store(tiny_runtime).manifest(ref).payload
    assert payload["config"] == {"seed": 3}
    assert payload["inputs"] == {"prompts": "prompts-v1-abc"}


def test_requests_for_the_same_artifact_are_equal(tiny_config: PipelineConfig, tmp_path: Path) -> None:
    (tmp_path / "here").write_text("same")
    (tmp_path / "there").write_text("same")
    here, there = (asked(tiny_config, file=tmp_path / name) for name in ("here", "there"))
    assert here == there
    assert here != asked(tiny_config)
    assert here != asked(tiny_config, replace(DROPS, version="2"), file=tmp_path / "here")
    assert here != DROPS.request(tiny_config, prompts=ArtifactRef("prompts", "other"), file=tmp_path / "here")


def test_a_stage_with_nothing_to_do_answers_with_its_first_input(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    idle = seeded(tiny_config, 0)
    assert DROPS.request(idle, prompts=PROMPTS) == PROMPTS
    assert replace(DROPS, fill=never)(PROMPTS, config=idle, runtime=tiny_runtime) == PROMPTS


def test_inputs_that_a_stage_does_not_take_are_an_error(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig
) -> None:
    several = asked(tiny_config, **{"sample:base@0": PROMPTS, "sample:cads@1": PROMPTS})
    assert sorted(several.inputs) == ["prompts", "sample:base@0", "sample:cads@1"]
    with pytest.raises(TypeError, match=r"missing: \['prompts'\], unknown: \['smaple'\]"):
        DROPS.request(tiny_config, smaple=PROMPTS)
    with pytest.raises(ValueError, match="longer"):
        DROPS(PROMPTS, PROMPTS, config=tiny_config, runtime=tiny_runtime)


def test_a_file_that_changes_between_plan_and_run_is_refused(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    """The artifact would hold something else than its key says."""
    (tmp_path / "file").write_text("as planned")
    request = asked(tiny_config, file=tmp_path / "file")
    (tmp_path / "file").write_text("changed since")
    with pytest.raises(InputError, match="a file that the configuration names changed since this run began"):
        replace(DROPS, fill=never).make(request, tiny_runtime)
    (tmp_path / "file").write_text("as planned")
    ref = DROPS.make(request, tiny_runtime)
    (tmp_path / "file").write_text("changed since")
    assert DROPS.make(request, tiny_runtime) == ref  # what is published was made of what was planned


def test_the_projects_errors_gain_stage_and_key(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    def fail(view: SeedView, inputs: Inputs, build: Build, runtime: RuntimeConfig, on_progress: Progress) -> None:
        raise InputError("0 prompts; add one")

    failing = replace(DROPS, fill=fail)
    key = reference(open_store(tiny_runtime), asked(tiny_config, failing)).key
    with pytest.raises(InputError) as caught:
        failing(PROMPTS, config=tiny_config, runtime=tiny_runtime)
    assert str(caught.value) == f"[drops/{key}] 0 prompts; add one"
    assert not open_store(tiny_runtime).is_published(ArtifactRef("drops", key))


def test_another_root_is_another_store(
    tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig, tmp_path: Path
) -> None:
    ref = DROPS.make(asked(tiny_config), tiny_runtime)
    other = tiny_runtime.model_copy(update={"root": str(tmp_path / "other")})
    with pytest.raises(AssertionError, match="built although published"):
        replace(DROPS, fill=never).make(asked(tiny_config), other)
    assert DROPS.make(asked(tiny_config), other) == ref


def test_fields_outside_a_view_are_at_their_defaults(tiny_config: PipelineConfig) -> None:
    sampling = tiny_config.sampling.model_copy(update={"width": 128, "guidance_scale": 9.0})
    kept = keep_fields(sampling, "width")
    assert (kept.width, kept.guidance_scale, kept.n_steps) == (128, 2.5, 12)
    dropped = drop_fields(sampling, "width")
    assert (dropped.width, dropped.guidance_scale, dropped.n_steps) == (64, 9.0, 2)
