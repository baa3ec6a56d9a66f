"""What stages that write a page see of the configuration: all of it, for the page prints it."""

import json
from collections.abc import Mapping
from typing import Any

from popalign_core.config import PipelineConfig
from tasks.common.prompt_lists import FIELDS
from tasks.common.stage_object import View, drop_fields
from tasks.stages.prompts import DELIVERY

_LISTED = (*FIELDS, "benchmarks")
_MODEL_PATHS = ("denoiser", "lora")
_LATER_PATHS = ("config", "vae", "loras")
"""Left out where others are null: a key made before they were there does not change."""
_FILES = ("path", "clip", "tokenizer", "processor")


class PageView(View):
    """The configuration but for how the answers of a language model reached us."""

    configuration: PipelineConfig

    @staticmethod
    def shown(config: PipelineConfig) -> PipelineConfig:
        """What a page shows of a configuration."""
        if config.prompts.llm is None:
            return config
        llm = drop_fields(config.prompts.llm, *DELIVERY)
        return config.model_copy(update={"prompts": config.prompts.model_copy(update={"llm": llm})})

    def printed(self) -> str:
        """The configuration as pages print it and `--config` reads it: what decides the results, paths too."""
        return json.dumps(self.configuration.model_dump(mode="json", exclude={"prompts": {"llm": set(DELIVERY)}}))

    def unhashed(self) -> dict[str, str]:
        """Lists and paths: what they say and what lies there is in the keys of the inputs."""
        paths = [
            *(f"model.{name}" for name in ("name", *_MODEL_PATHS, *_LATER_PATHS)),
            *("sampling.safety_checker", "sampling.sdedit.folder", "attributes.classifiers.*.path"),
            *(f"evaluation.scorers.*.{name}" for name in _FILES),
            *(f"prompts.{field}" for field in _LISTED),
        ]
        return {f"configuration.{path}": "in the keys of the inputs" for path in paths}


def hashed_configuration(config: PipelineConfig) -> dict[str, Any]:
    """The configuration as keys of pages hold it: no path, for the keys of the inputs hold what lies there."""
    prompts: dict[str, Any] = {"llm": set(DELIVERY), **dict.fromkeys(_LISTED, True)}
    excluded: dict[str, Any] = {"model": {"name", *_LATER_PATHS}, "prompts": prompts}
    document = config.model_dump(mode="json", exclude=excluded)
    return _without_paths(document) | {
        "systems": {name: _without_paths(system) for name, system in document["systems"].items()}
    }


def _without_paths(document: Mapping[str, Any]) -> dict[str, Any]:
    """A configuration, or what a system changes of one."""
    found = dict(document)
    for section, paths in (("model", ("name", *_MODEL_PATHS)), ("sampling", ("safety_checker",))):
        if found.get(section):
            kept = {name: value for name, value in found[section].items() if name not in _LATER_PATHS}
            found[section] = kept | {name: None for name in paths if name in kept}
    if (found.get("sampling") or {}).get("sdedit"):
        sdedit = {name: value for name, value in found["sampling"]["sdedit"].items() if name != "folder"}
        found["sampling"] = found["sampling"] | {"sdedit": sdedit}
    for section, field in (("attributes", "classifiers"), ("evaluation", "scorers")):
        if (found.get(section) or {}).get(field):
            each = {name: _without_files(settings) for name, settings in found[section][field].items()}
            found[section] = found[section] | {field: each}
    if (found.get("evaluation") or {}).get("readings"):
        readings = {
            name: _without_paths({"attributes": changes})["attributes"]
            for name, changes in found["evaluation"]["readings"].items()
        }
        found["evaluation"] = found["evaluation"] | {"readings": readings}
    return found


def _without_files(settings: Mapping[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in settings.items() if name not in _FILES}
