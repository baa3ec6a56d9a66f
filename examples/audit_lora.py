"""What a LoRA does to the fairness of a model: both are measured on the same prompts and seeds, from Python.

    python examples/audit_lora.py style.safetensors --preset sdxl --scale 0.25

Nothing is trained. Images and metrics stay in the store, so that a second call takes seconds.
"""

import argparse
from collections.abc import Mapping
from typing import Any

import pandas as pd

from flows.plan.compare_systems import run_comparison
from flows.plan.execution import call_directly
from popalign_core.config import PipelineConfig, RuntimeConfig, SystemConfig
from popalign_core.config.presets import preset
from tasks.common.stage_object import open_store

METRICS = ("discrepancy_pooled", "discrepancy_per_prompt", "recall", "no_face_share", "clip_score")


def audit(
    changes: Mapping[str, Any], config: PipelineConfig, runtime: RuntimeConfig, *, scale: float = 1.0
) -> pd.DataFrame:
    """The headline metrics of the base model and of the changed one, and the store's run `audit` with its report.

    Args:
        changes: Overrides of `[model]`, such as `{"lora": "style.safetensors", "lora_scale": 0.8}`.
        config: Prompts, sampling, classifier and metrics.
        runtime: Store, device, batch size.
        scale: Share of the evaluation images, for a quick look.

    Returns:
        Rows of table `metrics` with `system` "base" or "changed".
    """
    systems = dict(config.systems) | {"changed": SystemConfig(model=dict(changes))}
    config = config.model_copy(update={"systems": systems})
    ref = run_comparison(["base", "changed"], config, runtime, "audit", call=call_directly(), scale=scale, replace=True)
    metrics = open_store(runtime).read_table(ref, "metrics")
    return metrics[metrics["metric"].isin(METRICS)]


def main() -> None:
    """Audit the LoRA that is named."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("lora", help="a .safetensors file or an adapter folder")
    parser.add_argument("--lora-scale", type=float, default=1.0)
    parser.add_argument("--preset", default="sdxl")
    parser.add_argument("--root", default="artifacts", help="store")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the evaluation images")
    given = parser.parse_args()
    changes = {"lora": given.lora, "lora_scale": given.lora_scale}
    rows = audit(changes, preset(given.preset), RuntimeConfig(root=given.root), scale=given.scale)
    columns = ["benchmark", "metric", "axis", "system", "value", "ci_low", "ci_high", "floor"]
    print(rows[columns].to_string(index=False, float_format="{:.3f}".format))  # noqa: T201
    print(f"\nReport: {given.root}/runs/audit/report.html")  # noqa: T201


if __name__ == "__main__":
    main()
