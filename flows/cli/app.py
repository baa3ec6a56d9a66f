"""The command line. Everything heavy is imported inside the commands, so that `--help` answers at once."""

import errno
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from typer.core import TyperGroup

from flows.cli.compare import check, compare, sweep
from flows.cli.configuration import AsJson, show_config, write_config
from flows.cli.exchange import exports, imports
from flows.cli.fetch import fetch
from flows.cli.operations import deploy, doctor, gc, verify
from flows.cli.plan_command import plan
from flows.cli.show import show_run
from flows.pages.serve_command import serve_pages
from flows.review.commands import review, studies
from flows.terminal.arguments import Config, Force, Name, Preset, Replace, Root, Settings, path_option
from popalign_core.errors import ConfigError, InputError, PopAlignError
from popalign_core.models.quiet import be_quiet

if TYPE_CHECKING:
    from flows.plan.planning import Plan
    from popalign_core.config import PipelineConfig, RuntimeConfig
    from storage.store import ArtifactRef, Store

EXIT_CODES = """Exit codes: 0 done; 1 unexpected error (with its traceback); 2 wrong command line or configuration;
3 wrong input data; 4 missing weights; 5 store unreadable, unwritable or damaged; 6 training cannot go on;
7 a service does not answer; 8 memory or workers run out; 9 a threshold of `popalign check` is missed;
130 interrupted, 143 ended by SIGTERM (the same command again resumes)."""

_PATH_FAULTS = (errno.ENAMETOOLONG, errno.ELOOP, errno.EACCES, errno.EISDIR, errno.ENOTDIR, errno.ENXIO)
"""What a path of the user may be that was not looked at before: too long, a loop of links, a socket, another's."""


class Commands(TyperGroup):
    """Turns the project's errors into one message and an exit code; other errors keep their traceback."""

    def invoke(self, ctx: Any) -> Any:
        """Run the command."""
        try:
            return super().invoke(ctx)
        except PopAlignError as error:
            # a note says whose error it is, where several checkpoints are evaluated
            typer.echo("\n  ".join([f"popalign: {error}", *getattr(error, "__notes__", ())]), err=True)
            raise typer.Exit(error.exit_code) from error
        except OSError as error:
            if error.errno not in _PATH_FAULTS or error.filename is None:
                raise
            typer.echo(f"popalign: cannot use {error.filename!r:.200}: {error.strerror}; give another path", err=True)
            raise typer.Exit(InputError.exit_code) from error


app = typer.Typer(
    cls=Commands,
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
    epilog=EXIT_CODES,
)
portraits = typer.Typer(no_args_is_help=True, help="The embedded model `portraits`.", rich_markup_mode=None)
app.add_typer(portraits, name="portraits")
app.add_typer(imports, name="import")
app.add_typer(exports, name="export")
app.add_typer(studies, name="study")
app.command("init")(write_config)
app.command("config")(show_config)


def _print_version(is_asked: bool) -> None:
    if is_asked:
        from popalign_core import __version__

        typer.echo(f"popalign {__version__}")
        raise typer.Exit


@app.callback()
def show_version(
    version: Annotated[
        bool, typer.Option("--version", callback=_print_version, is_eager=True, help="Print the version and exit.")
    ] = False,
) -> None:
    """Make a text-to-image model fair at the level of populations, and measure it."""


@app.command()
def run(
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    name: Name = None,
    settings: Settings = None,
    replace: Replace = False,
    prefect: Annotated[
        bool, typer.Option("--prefect", help="Run as a Prefect flow on the server at PREFECT_API_URL.")
    ] = False,
) -> None:
    """Run the whole pipeline. Cached stages are skipped."""
    from flows.plan.planning import plan_run as plan_nodes
    from flows.terminal.options import build_config, run_name

    pipeline, runtime = build_config(preset, config, settings or [], root)
    name = run_name(preset, config, name, settings)
    if prefect:
        refs = _run_as_flow(pipeline, runtime, name, replace=replace)
    else:
        planned = plan_nodes(pipeline, runtime)
        n_hits = sum(node.is_hit for node in planned)
        typer.echo(f"{len(planned)} stages, {n_hits} of them in {runtime.root}", err=True)
        refs = _run_here(pipeline, runtime, name, planned, replace=replace)
    _conclude(refs, pipeline, runtime, name)


app.command()(plan)
app.command("show")(show_run)


@app.command()
def stage(
    node: Annotated[str, typer.Argument(metavar="NAME", help="Stage, as listed by `popalign plan`, such as 'train'.")],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    settings: Settings = None,
    force: Force = False,
) -> None:
    """Run one stage and the missing stages it depends on."""
    from flows.plan.execution import call_directly
    from flows.plan.runs import run_stage
    from flows.terminal.options import build_config
    from flows.terminal.progress import console_progress
    from flows.terminal.terminal_tables import drops_line

    pipeline, runtime = build_config(preset, config, settings or [], root)
    with console_progress() as progress:
        ref = run_stage(node, pipeline, runtime, call=call_directly(progress), force=force)
    store = _open(runtime.root)
    if "drops" in store.manifest(ref).rows:
        typer.echo(drops_line(store.read_table(ref, "drops").to_dict("records")), err=True)
    typer.echo(f"{node}: {ref} in {runtime.root}")


@app.command()
def report(
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    name: Name = None,
    settings: Settings = None,
    force: Force = False,
) -> None:
    """Rewrite the report of a run from the store; no other stage is run."""
    from flows.plan.planning import plan_run as plan_nodes
    from flows.terminal.options import build_config, run_name

    pipeline, runtime = build_config(preset, config, settings or [], root)
    name = run_name(preset, config, name, settings)
    planned = plan_nodes(pipeline, runtime)
    missing = [node.node for node in planned if not node.is_hit and node.node != "report"]
    if missing:
        raise InputError(f"{runtime.root} lacks {', '.join(missing)} of this configuration; `popalign run` makes them")
    if force:
        planned = plan_nodes(pipeline, runtime, forced="report")
    _conclude(_run_here(pipeline, runtime, name, planned, replace=False), pipeline, runtime, name)


@app.command("train")
def train_pairs(
    key: Annotated[
        str, typer.Argument(metavar="KEY", help="Key of imported pairs or sets, as printed by `popalign import`.")
    ],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    name: Annotated[
        str | None, typer.Option(help="Folder under runs/; default: preset or file name, with the objective.")
    ] = None,
    settings: Settings = None,
    replace: Replace = False,
) -> None:
    """Train the base model on imported pairs or sets. The same command resumes."""
    from flows.plan.execution import call_directly
    from flows.plan.runs import train_on_pairs
    from flows.terminal.options import build_config, run_name
    from flows.terminal.progress import console_progress

    pipeline, runtime = build_config(preset, config, settings or [], root)
    name = run_name(preset, config, name, settings, f"-{pipeline.training.objective}")
    with console_progress() as progress:
        model = train_on_pairs(key, pipeline, runtime, name, call=call_directly(progress), replace=replace)
    if "://" in model:
        whole = f"`popalign export model {name} PATH --root {runtime.root}` writes a complete model on this machine"
        typer.echo(
            f"The trained weights are in {model}; {whole}, and "
            "`popalign run --set model.name=PATH` continues from there"
        )
    else:
        typer.echo(f"The model is in {model}; `popalign run --set model.name={model}` continues from there")


@app.command()
def evaluate(
    models: Annotated[
        list[str], typer.Argument(metavar="MODEL...", help="Diffusers folders, .safetensors files, or 'portraits'.")
    ],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    settings: Settings = None,
    as_json: AsJson = False,
) -> None:
    """Evaluate models that are not on the leaderboard yet, and print their rows."""
    from flows.plan.checkpoints import evaluate_checkpoints, evaluation_protocol, named_checkpoints
    from flows.plan.execution import call_directly
    from flows.terminal.options import build_config
    from flows.terminal.progress import console_progress
    from flows.terminal.terminal_tables import board_lines, caveat_lines, rows_json
    from tasks.publishing.leaderboard import read_leaderboard

    pipeline, runtime = build_config(preset, config, settings or [], root)
    checkpoints = named_checkpoints(models, pipeline.model.config)
    with console_progress() as progress:
        evaluate_checkpoints(checkpoints, pipeline, runtime, call=call_directly(progress))
    board = read_leaderboard(runtime.root)
    asked = board[board["model_hash"].isin([checkpoint.model_hash for checkpoint in checkpoints])]
    asked = asked[asked["protocol"] == evaluation_protocol(pipeline, runtime)]
    rows = asked.to_dict("records")
    for line in [rows_json(rows)] if as_json else (*board_lines(rows), *caveat_lines(rows)):
        typer.echo(line)


for command in (compare, sweep, check, fetch, deploy, doctor, verify, gc):
    app.command()(command)


@app.command()
def synthetic(
    out: Annotated[Path, path_option("Folder for synthetic.html and synthetic.csv.")] = Path("synthetic"),
    n_seeds: Annotated[int, typer.Option("--seeds", help="Number of seeds of the three main settings.")] = 5,
    n_steps: Annotated[int, typer.Option("--steps", help="Optimizer steps per run.")] = 3000,
) -> None:
    """Run the paper's 1-D experiment: what SFT and PopAlign do to mass that no preference compares."""
    from flows.terminal.progress import console_progress
    from popalign_core.synthetic.experiment import run_experiment, summarise_experiment
    from popalign_core.synthetic.experiment_page import build_page

    with console_progress() as progress:
        outcomes = run_experiment(n_seeds, n_steps=n_steps, on_run=lambda done, total: progress("run", done, total))
    table = summarise_experiment(outcomes)
    out.mkdir(parents=True, exist_ok=True)
    table.to_csv(out / "synthetic.csv", index=False)
    (out / "synthetic.html").write_text(build_page(outcomes), encoding="utf-8")
    typer.echo(table.to_string(index=False, float_format="{:.3f}".format))
    typer.echo(f"\nPage: {out / 'synthetic.html'}")


@portraits.command()
def train(
    data: Annotated[Path, path_option("Folder with portraits.parquet and things.parquet.")],
    out: Annotated[Path, path_option("Folder for the weights.")] = Path("portraits-weights"),
    work: Annotated[Path | None, path_option("Folder for checkpoints; default: OUT-work.")] = None,
) -> None:
    """Train the embedded model from its data. The same command resumes."""
    missing = [name for name in ("portraits.parquet", "things.parquet") if not (data / name).is_file()]
    if missing:
        raise InputError(f"{data} lacks {', '.join(missing)}; give the folder with the data packs, see docs/figures.md")
    from flows.terminal.progress import console_progress
    from popalign_core.portraits_recipe.recipe import Recipe, train_portraits

    recipe = Recipe()
    with console_progress() as progress:

        def on_step(part: str, step: int, values: dict[str, float]) -> None:
            progress(part, step + 1, getattr(recipe, part.partition("-")[0]).steps)

        train_portraits(data, out, work or out.with_name(f"{out.name}-work"), recipe=recipe, on_step=on_step)
    typer.echo(f"The embedded model is in {out}")


app.command()(review)
app.command("serve")(serve_pages)


def main() -> None:
    """Entry point of the command `popalign`."""
    be_quiet()  # the libraries' own bars and advice would run through ours
    app()


def _open(root: str | None, *, create: bool = True) -> "Store":
    from flows.terminal.options import DEFAULT_ROOT
    from storage.store import Store

    return Store(root or DEFAULT_ROOT, create=create)


def _run_here(
    config: "PipelineConfig", runtime: "RuntimeConfig", name: str, planned: "Plan", *, replace: bool
) -> "dict[str, ArtifactRef]":
    from flows.plan.execution import call_directly
    from flows.plan.runs import run_pipeline
    from flows.terminal.progress import console_progress

    with console_progress() as progress:
        return run_pipeline(config, runtime, name, call=call_directly(progress), planned=planned, replace=replace)


def _run_as_flow(
    config: "PipelineConfig", runtime: "RuntimeConfig", name: str, *, replace: bool
) -> "dict[str, ArtifactRef]":
    from tasks.publishing.finished_run import check_replaced
    from tasks.workers.prefect_server import check_server, server_errors, server_url

    if not server_url():
        raise ConfigError("--prefect needs a server; set PREFECT_API_URL, for example http://127.0.0.1:4200/api")
    check_server()
    if not replace:
        check_replaced(config, runtime, name)
    from flows.pipeline import popalign

    with server_errors():
        document = config.model_dump(mode="json", exclude_none=True)
        return popalign(config=document, runtime=runtime, name=name, replace=replace)


def _conclude(refs: "dict[str, ArtifactRef]", config: "PipelineConfig", runtime: "RuntimeConfig", name: str) -> None:
    from flows.terminal.terminal_tables import verdict_lines
    from tasks.publishing.finished_run import read_systems

    for line in verdict_lines(read_systems(_open(runtime.root), refs, config)):
        typer.echo(line)
    typer.echo(f"\nReport: {runtime.root.rstrip('/')}/runs/{name}/report.html")
