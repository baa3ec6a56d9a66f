"""The Prefect side of every flow: stages as tasks, and what a flow run shows as artifacts."""

import shlex
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import quote, urlsplit

import pandas as pd
from prefect.exceptions import TerminationSignal
from prefect.logging import get_run_logger

from flows.pages.serve_command import PAGES_PORT
from flows.plan.planning import PlannedNode
from flows.review.server_settings import is_loopback
from popalign_core.config import RuntimeConfig
from popalign_core.errors import PreemptedError
from popalign_core.report.card_markdown import verdict_markdown
from popalign_core.report.markdown import escape_markdown, markdown_table
from popalign_core.report.standings import ComparisonResults
from storage.reviews.passwords import hide_password
from storage.store import ArtifactRef, Manifest
from tasks.prefect_tasks import make_as_task

HEADLINES = (
    "discrepancy_pooled",
    "discrepancy_per_prompt",
    "recall",
    "no_face_share",
    "clip_score",
    "subject_accuracy",
)
"""The metrics a reader wants first; the report and metrics.parquet have them all."""


def call_as_task(node: PlannedNode, runtime: RuntimeConfig) -> ArtifactRef:
    """Run a node as a Prefect task under its name."""
    assert node.request is not None
    return make_as_task(node.request, runtime, node.node)


@contextmanager
def saved_on_sigterm() -> Iterator[None]:
    """A training that has saved itself on SIGTERM ends the flow run as SIGTERM ends one elsewhere.

    Prefect then makes it Cancelled where somebody cancelled it, and else Crashed, which the automation that `popalign
    deploy` makes starts again.
    """
    try:
        yield
    except PreemptedError as error:
        get_run_logger().warning("%s", error)
        raise TerminationSignal(signal.SIGTERM) from error


def metrics_markdown(metrics: pd.DataFrame) -> str:
    """The headline metrics, a column a system, each with its interval."""
    systems = list(dict.fromkeys(metrics["system"]))
    chosen = metrics[metrics["metric"].isin(HEADLINES)]
    rows = []
    for (benchmark, metric, axis), group in chosen.groupby(["benchmark", "metric", "axis"], sort=False):
        cells = {str(row.system): _cell(row.value, row.ci_low, row.ci_high) for row in group.itertuples()}
        names = (escape_markdown(str(benchmark)), str(metric), escape_markdown(str(axis)))
        rows.append([*names, *(cells.get(system, "") for system in systems)])
    return markdown_table(["benchmark", "metric", "axis", *map(escape_markdown, systems)], rows)


def leaderboard_markdown(board: pd.DataFrame) -> str:
    """The headline metrics of every checkpoint."""
    named = board["checkpoint"] + " " + board["model_hash"].str[:8]
    return metrics_markdown(board.assign(system=named))


def results_markdown(results: ComparisonResults) -> str:
    """The report's verdict in its own words, and below it the headline metrics."""
    return f"{verdict_markdown(results)}\n{metrics_markdown(results.inputs.metrics)}"


def report_url(runtime: RuntimeConfig, name: str) -> str:
    """Where a run's report is to be read: browsers open no file from a page of Prefect's."""
    return f"{runtime.pages_url.rstrip('/')}/runs/{quote(name)}/report.html"


def report_description(runtime: RuntimeConfig) -> str:
    """What makes that link open."""
    root = hide_password(runtime.root) if "://" in runtime.root else str(Path(runtime.root).resolve())
    words = ["popalign", "serve", "--root", root]
    address = urlsplit(runtime.pages_url)
    if is_loopback(address.hostname or "") and address.port not in (None, PAGES_PORT):
        words += ["--port", str(address.port)]
    return f"`{shlex.join(words)}` shows it."


def manifest_markdown(node: str, manifest: Manifest) -> str:
    """Which artifact a node ended with, and its tables' sizes."""
    rows = [[name, str(n)] for name, n in manifest.rows.items()]
    return f"`{node}` is `{manifest.stage}/{manifest.key}`\n\n{markdown_table(['table', 'rows'], rows)}"


def _cell(value: Any, low: Any, high: Any) -> str:
    if pd.isna(value):
        return "not measured"
    return f"{value:.3f}" if pd.isna(low) or pd.isna(high) else f"{value:.3f} ({low:.3f} to {high:.3f})"
