"""The command that prints the table of a finished run again. Everything heavy is imported inside it."""

from typing import TYPE_CHECKING, Annotated

import typer

from flows.cli.configuration import AsJson
from flows.terminal.arguments import Root
from popalign_core.errors import InputError

if TYPE_CHECKING:
    from storage.store import ArtifactRef, Store


def show_run(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Folder under runs/: of a run, a comparison or a sweep.")],
    root: Root = None,
    as_json: AsJson = False,
) -> None:
    """Print the table of a finished run, comparison or sweep again."""
    from flows.terminal.options import DEFAULT_ROOT
    from flows.terminal.terminal_tables import caveat_lines, point_lines, rows_json, systems_lines, verdict_lines
    from storage.store import Store
    from tasks.publishing.finished_run import read_metrics, read_systems
    from tasks.studies.study_records import read_config

    store = Store(root or DEFAULT_ROOT, create=False)
    nodes = _find_nodes(store, run)
    if "sweep" in nodes:
        points, front = (store.read_table(nodes["sweep"], table).to_dict("records") for table in ("points", "front"))
        rows, lines = points, [*point_lines(points, front), *caveat_lines(points)]
    elif "comparison" in nodes:
        rows = store.read_table(nodes["comparison"], "metrics").to_dict("records")
        systems = list(dict.fromkeys(row["system"] for row in rows))
        lines = [*systems_lines(rows, systems), *caveat_lines(rows)]
    elif "report" in nodes:
        rows = read_metrics(store, nodes).to_dict("records")
        lines = verdict_lines(read_systems(store, nodes, read_config(store, run)))
    else:
        raise InputError(f"run {run!r} has no report; it has {', '.join(nodes)}: evaluate it, or name another run")
    for line in [rows_json(rows)] if as_json else lines:
        typer.echo(line)


def _find_nodes(store: "Store", run: str) -> "dict[str, ArtifactRef]":
    """The artifacts of a run; for an unknown one, with the names there are."""
    from popalign_core.config.spelling import choose_from
    from tasks.studies.study_records import read_nodes

    known = store.run_names()
    if run not in known:
        listed = choose_from(run, known) if known else "`popalign run` makes one"
        raise InputError(f"there is no run {run!r} in {store.root}; {listed}")
    return read_nodes(store, run)
