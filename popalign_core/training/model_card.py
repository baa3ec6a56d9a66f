"""The model card of a trained model: what it is, what it was made from, what was measured, what to doubt."""

from collections.abc import Mapping, Sequence
from typing import Any

from popalign_core.config import Axis, ModelConfig, TrainingConfig
from popalign_core.report.markdown import cell, markdown_table

SHOWN = (
    ("neutral", "discrepancy_pooled"),
    ("neutral", "discrepancy_per_prompt"),
    ("neutral", "clip_score"),
    ("specific", "recall"),
    ("generic", "clip_score"),
    ("generic", "subject_accuracy"),
)


def model_card(
    base: str,
    training: TrainingConfig,
    axes: Sequence[Axis],
    keys: Mapping[str, str],
    log: Sequence[Mapping[Any, Any]],
    metrics: Sequence[Mapping[Any, Any]] = (),
    *,
    name: str | None = None,
) -> str:
    """The card in Markdown, with the front matter that model hubs read.

    Args:
        base: What was trained, from `describe_base` or by its weights.
        training: How.
        axes: With the targets that were aimed at.
        keys: What the model was trained on: name of an input -> key of its artifact.
        log: training_log rows.
        metrics: Rows of both systems' metrics; none before the evaluation.
        name: Of the base model; None where only its weights are known.
    """
    what = f"LoRA of rank {training.lora_rank}" if training.lora_rank else f"{training.trained_weights} weights"
    # pairs made elsewhere come without attributes: no population was aimed at
    is_population = "attributes" in keys
    last = {str(row["name"]): float(row["value"]) for row in log}
    parts = [
        "---\nlibrary_name: diffusers\npipeline_tag: text-to-image\n"
        + (f"base_model: {name}\n" if name else "")
        + "tags: [popalign, fairness, preference-optimisation]\n---\n",
        f"# {name or 'A model'}, trained by PopAlign\n",
        f"Base model: {base}{_start(keys)}. Objective: `{training.objective}` ({what}), "
        f"{f'{training.rounds} rounds of ' if training.rounds > 1 else ''}{training.n_steps} steps of "
        f"{training.n_pairs} pairs.\n",
        _target(axes) if is_population else "The preferences are pairs of pictures made elsewhere.\n",
        "## Measured\n",
        _measured(metrics),
        "## Made from\n",
        markdown_table(["input", "artifact"], [[name, f"`{key}`"] for name, key in keys.items()]),
        "## Training\n",
        markdown_table(["setting", "value"], [[name, cell(f"`{v}`")] for name, v in training.model_dump().items()]),
        "Last logged values:\n",
        markdown_table(["term", "value"], [[name, f"{value:.5g}"] for name, value in last.items()]),
        _LIMITS,
    ]
    return "\n".join(parts)


def describe_base(model: ModelConfig) -> str:
    """The base model by name, with what takes the place of its denoiser and what is fused into it."""
    parts = [f"`{model.name}`" if model.revision is None else f"`{model.name} @ {model.revision}`"]
    if model.denoiser is not None:
        parts.append(f"with the denoiser `{model.denoiser}`")
    if model.vae is not None:
        parts.append(f"with the VAE `{model.vae}`")
    parts += [f"with the LoRA `{lora.path}` at {lora.scale:g}" for lora in model.all_loras]
    return " ".join(parts)


def _start(keys: Mapping[str, str]) -> str:
    return f", from where the training `{keys['start']}` left it" if "start" in keys else ""


def _target(axes: Sequence[Axis]) -> str:
    rows = [
        [cell(axis.name), cell(name), f"{share:.3g}"]
        for axis in axes
        for name, share in zip(axis.classes, axis.shares(), strict=True)
    ]
    about = "What was to change is the mixture of people under prompts that name no identity.\n"
    return f"{about}\n## Target\n\n{markdown_table(['axis', 'class', 'share'], rows)}"


def _measured(metrics: Sequence[Mapping[Any, Any]]) -> str:
    if not metrics:
        return "Not evaluated yet. `popalign evaluate` measures this folder, `popalign run` writes the figures here.\n"
    rows = []
    for benchmark, metric in SHOWN:
        chosen = [row for row in metrics if (row["benchmark"], row["metric"]) == (benchmark, metric)]
        for axis in dict.fromkeys(str(row["axis"]) for row in chosen):
            values = {str(row["system"]): row for row in chosen if row["axis"] == axis}
            cells = [_cell(values[system]) if system in values else "not measured" for system in ("base", "aligned")]
            rows.append([cell(f"{benchmark} {metric} {axis}".strip()), *cells])
    return markdown_table(["figure", "base", "aligned"], rows)


def _cell(row: Mapping[Any, Any]) -> str:
    low, high = row["ci_low"], row["ci_high"]
    if row["value"] is None or row["value"] != row["value"]:
        return "not measured"
    interval = f" [{low:.3f}, {high:.3f}]" if low == low and low is not None else ""
    return f"{row['value']:.3f}{interval}"


_LIMITS = """## Limits

- Classes are read off pictures by a classifier. They say how people look to it, not who anybody is, and its errors
  are in every figure above.
- Fairness was measured on the prompts, classes and sampling settings of this run. Other prompts, languages, guidance
  scales or samplers may bring the old mixture back.
- Prompts that name an identity should still get it (recall), and prompts without people should look as before (CLIP
  score, object accuracy): look at these rows before you trust the others.

## What it must not be used for

Do not infer from this model what people of any group look like or do. Do not use it, or the classifiers behind it, to
sort, identify or judge persons. An even mixture in pictures is no evidence of fairness in anything else.
"""
