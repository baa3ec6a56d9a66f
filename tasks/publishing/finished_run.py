"""The end of a run: `<root>/runs/<name>/`, the few files a person wants, and the list of artifacts behind them."""

import json
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import pandas as pd

from popalign_core.config import PipelineConfig, RuntimeConfig
from popalign_core.errors import ConfigError
from popalign_core.report.comparison_inputs import ComparisonInputs
from popalign_core.report.standings import ComparisonResults
from popalign_core.training.model_card import describe_base, model_card
from storage.store import ArtifactRef, RunFolder, Store
from tasks.common.reservations import reserve_run
from tasks.common.stage_object import open_store
from tasks.publishing.published_model import publish_model
from tasks.stages import comparison, report

SYSTEMS = ("base", "aligned")


def publish_run(refs: Mapping[str, ArtifactRef], config: PipelineConfig, runtime: RuntimeConfig, name: str) -> None:
    """Write metrics.parquet, metrics.json, report.html, report.md, model/, lora/ where an adapter was trained, and,
    last, run.json.

    Args:
        refs: Each node's artifact, of a whole pipeline.
        config: The run's, kept in run.json.
        runtime: Which store.
        name: Of the run's folder; an earlier run of that name is replaced.
    """
    store = open_store(runtime)
    metrics = read_metrics(store, refs)
    folder = store.run_folder(name)
    folder.write_table("metrics", metrics)
    folder.write_text("metrics.json", metrics_json(metrics))
    for file in (report.PAGE, report.CARD):
        folder.write_text(file, store.localize(refs["report"], file).read_text(encoding="utf-8"))
    publish_model(store, refs["train"], config.model, folder)
    _write_card(store, refs, config, folder, metrics.to_dict("records"))
    nodes = {node: str(ref) for node, ref in refs.items()}
    folder.record(refs.values(), {"nodes": nodes, "config": config.model_dump(mode="json")})


def publish_training(refs: Mapping[str, ArtifactRef], config: PipelineConfig, runtime: RuntimeConfig, name: str) -> str:
    """Write model/, lora/ where an adapter was trained, and, last, run.json.

    Args:
        refs: `train`, and what it was trained on.
        config: The run's, kept in run.json.
        runtime: Which store.
        name: Of the run's folder; an earlier training of that name is replaced.

    Returns:
        Where the model is.
    """
    store = open_store(runtime)
    folder = store.run_folder(name)
    publish_model(store, refs["train"], config.model, folder)
    _write_card(store, refs, config, folder)
    nodes = {node: str(ref) for node, ref in refs.items()}
    folder.record(refs.values(), {"nodes": nodes, "config": config.model_dump(mode="json")})
    return f"{folder.url}/model"


def publish_comparison(
    refs: Mapping[str, ArtifactRef], config: PipelineConfig, runtime: RuntimeConfig, name: str
) -> None:
    """Write the tables of systems side by side for programs and people, and, last, run.json.

    Args:
        refs: Each node's artifact, `comparison` among them.
        config: The run's, kept in run.json.
        runtime: Which store.
        name: Of the run's folder; an earlier comparison of that name is replaced.
    """
    store = open_store(runtime)
    folder = store.run_folder(name)
    for table in comparison.TABLES:
        _write_everywhere(folder, table, store.read_table(refs["comparison"], table))
    for source, target in ((comparison.PAGE, "report.html"), (comparison.CARD, "card.md")):
        folder.write_text(target, store.localize(refs["comparison"], source).read_text(encoding="utf-8"))
    nodes = {node: str(ref) for node, ref in refs.items()}
    folder.record(refs.values(), {"nodes": nodes, "config": config.model_dump(mode="json")})


def publish_sweep(
    refs: Mapping[str, ArtifactRef],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    name: str,
    diverged: Mapping[str, str],
) -> None:
    """Write the tables and pages of a sweep and, last, run.json.

    Args:
        refs: Each node's artifact, `sweep` among them.
        config: The run's, kept in run.json.
        runtime: Which store.
        name: Of the run's folder; an earlier sweep of that name is replaced.
        diverged: Artifact whose training came to nothing -> the reason, for `read_diverged`.
    """
    store = open_store(runtime)
    folder = store.run_folder(name)
    for table in ("points", "front"):
        _write_everywhere(folder, table, store.read_table(refs["sweep"], table))
    for page in store.manifest(refs["sweep"]).files:
        if page.endswith(".html"):
            folder.write_text(page, store.localize(refs["sweep"], page).read_text(encoding="utf-8"))
    nodes = {node: str(ref) for node, ref in refs.items()}
    meta = {"nodes": nodes, "config": config.model_dump(mode="json"), "diverged": diverged}
    folder.record(refs.values(), meta)


def read_diverged(runtime: RuntimeConfig, name: str) -> dict[str, str]:
    """Artifacts whose training an earlier sweep of a name found to diverge, with the reason."""
    record = open_store(runtime).run_folder(name).read_record() or {}
    return dict(record.get("meta", {}).get("diverged", {}))


def check_training_name(runtime: RuntimeConfig, name: str) -> None:
    """Refuse a folder that holds a whole run: its report would stand beside a model that it does not speak of.

    Raises:
        ConfigError: When there is such a run.
    """
    folder = open_store(runtime).run_folder(name)
    record = folder.read_record()
    if record is not None and "report" in record.get("meta", {}).get("nodes", {}):
        raise ConfigError(f"{folder.url} holds a complete run with its report; give another --name")


def claim_run(
    refs: Mapping[str, ArtifactRef],
    config: PipelineConfig,
    runtime: RuntimeConfig,
    name: str,
    *,
    replace: bool,
    is_comparison: bool = False,
) -> None:
    """Begin a run: keep what it will use or make, where it may stand in the folder of its name.

    Args:
        refs: Each node's artifact.
        config: As it will be recorded.
        runtime: Which store.
        name: Of the run's folder.
        replace: Whether a finished run of another configuration may give way.
        is_comparison: Whether the systems compared, which the configuration does not say, make another run too.

    Raises:
        ConfigError: As `check_replaced`.
    """
    if not replace:
        check_replaced(config, runtime, name, refs if is_comparison else None)
    reserve_run(refs.values(), runtime, name)


def check_replaced(
    config: PipelineConfig, runtime: RuntimeConfig, name: str, nodes: Iterable[str] | None = None
) -> None:
    """Refuse a folder that holds a finished run of another configuration, which this one would replace.

    Args:
        config: As it will be recorded.
        runtime: Which store.
        name: Of the run's folder.
        nodes: Of the run, where the configuration does not say which there are.

    Raises:
        ConfigError: Naming the parts that differ.
    """
    folder = open_store(runtime).run_folder(name)
    meta = (folder.read_record() or {}).get("meta", {})
    found = meta.get("config")
    if not isinstance(found, dict):
        return
    asked = config.model_dump(mode="json")
    differing = sorted(part for part in {*found, *asked} if found.get(part) != asked.get(part))
    if nodes is not None and set(meta.get("nodes", ())) != set(nodes):
        differing.append("systems compared")
    if differing:
        raise ConfigError(
            f"{folder.url} holds a run of another configuration (it differs in {', '.join(differing)}); give another "
            "--name, or --replace to lose that run's report and model (name and replace=true in a flow)"
        )


def read_metrics(store: Store, refs: Mapping[str, ArtifactRef]) -> pd.DataFrame:
    """The metrics of a pipeline's two systems, one table."""
    tables = [store.read_table(refs[f"evaluate:{system}"], "metrics") for system in SYSTEMS]
    return pd.concat(tables, ignore_index=True)


def read_systems(store: Store, refs: Mapping[str, ArtifactRef], config: PipelineConfig) -> ComparisonResults:
    """What the verdict on a pipeline's two systems rests on, as its report has it."""
    return ComparisonResults(
        ComparisonInputs(
            reference=SYSTEMS[0],
            systems=SYSTEMS,
            axes=config.identity_axes,
            metrics=read_metrics(store, refs),
            comparison=store.read_table(refs["report"], "comparison"),
            confidence=config.evaluation.confidence,
        )
    )


def read_compared(store: Store, ref: ArtifactRef, config: PipelineConfig) -> ComparisonResults:
    """What the verdict on the systems of a comparison rests on, as its page has it."""
    metrics, differences = store.read_table(ref, "metrics"), store.read_table(ref, "comparison")
    return ComparisonResults(
        ComparisonInputs(
            reference=differences["reference"].iloc[0],
            systems=tuple(dict.fromkeys(metrics["system"])),
            axes=config.axes,
            metrics=metrics,
            comparison=differences,
            confidence=config.evaluation.confidence,
        )
    )


def metrics_json(metrics: pd.DataFrame) -> str:
    """The rows of a table as a JSON list; what is absent is null."""
    rows = metrics.astype(object).where(metrics.notna(), None).to_dict("records")
    return json.dumps(rows, indent=1, allow_nan=False) + "\n"


def _write_card(
    store: Store,
    refs: Mapping[str, ArtifactRef],
    config: PipelineConfig,
    folder: RunFolder,
    metrics: Sequence[Mapping[Any, Any]] = (),
) -> None:
    """The card in place of the artifact's, which knows neither the base model's name nor the figures."""
    train = refs["train"]
    keys = dict(store.manifest(train).payload["inputs"]) | {"train": train.key}
    log = store.read_table(train, "training_log").to_dict("records")
    base, name = describe_base(config.model), config.model.name
    card = model_card(base, config.training, config.identity_axes, keys, log, metrics, name=name)
    folder.write_text("model/README.md", card)


def _write_everywhere(folder: RunFolder, table: str, frame: pd.DataFrame) -> None:
    """A table in three formats: Parquet, JSON and CSV."""
    folder.write_table(table, frame)
    folder.write_text(f"{table}.json", metrics_json(frame))
    folder.write_text(f"{table}.csv", frame.to_csv(index=False))
