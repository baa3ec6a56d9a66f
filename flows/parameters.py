"""What flows take, and how a flow run begins: a preset, what differs from it, and a name that follows from both."""

import json
from collections.abc import Sequence
from typing import Any, Literal

from prefect.runtime import flow_run

from flows.terminal.options import lay_settings, run_name
from popalign_core.config import PipelineConfig, RuntimeConfig, merge_documents
from popalign_core.config.presets import preset as find_preset
from popalign_core.errors import ResourceError
from popalign_core.models.quiet import be_quiet

PresetName = Literal["portraits", "smoke", "sdxl", "sdxl-trial", "sdxl-dpo", "sdxl-turbo", "sdxl-lightning", "sd15"]
"""Of `popalign_core.config.presets.PRESETS`; a form of Prefect's shows them as a list."""

Document = dict[str, Any]
"""A configuration as a file has it: whole, or with `preset` and what differs from that."""

MOST_STARTS = 50
"""Of one flow run: one that is lost again and again is not started for ever."""


def begin_flow() -> None:
    """Turn the libraries down, which would fill the worker's log, and end a flow run that never gets anywhere.

    Raises:
        ResourceError: When it was started too often.
    """
    be_quiet()
    count = flow_run.run_count or 0
    if count > MOST_STARTS:
        raise ResourceError(f"this flow run was started {count} times and was lost each time; see the worker's log")


def choose_config(
    preset: str, settings: Sequence[str] | None, config: Document | None, runtime: RuntimeConfig
) -> tuple[PipelineConfig, RuntimeConfig]:
    """The configuration of a flow run.

    Args:
        preset: Where it starts from, without `config`.
        settings: `field=value`, as `--set` takes them; `runtime.` fields change the runtime.
        config: In place of the preset.
        runtime: Of the machine.

    Raises:
        ConfigError: When a name, a field or a value does not fit.
    """
    given = dict(config or {})
    base = given.pop("preset", None if config else preset)
    document = given if base is None else merge_documents(find_preset(base).model_dump(exclude_none=True), given)
    return lay_settings(document, settings or (), runtime.model_dump())


def choose_name(preset: str, settings: Sequence[str] | None, config: Document | None, name: str | None) -> str:
    """The run's folder: the name given, else the preset's, with a hash of what differs from it.

    Raises:
        ConfigError: When it is no plain folder name.
    """
    changes = [*(settings or ()), *([json.dumps(config, sort_keys=True)] if config else [])]
    start = str(config.get("preset", "config")) if config else preset
    return run_name(start, None, name, changes)


def name_pipeline_run() -> str:
    """What Prefect calls a run of the whole pipeline."""
    given = flow_run.parameters
    return f"popalign {choose_name(given['preset'], given['settings'], given['config'], given['name'])}"
