"""The commands that bring in data made elsewhere and give out data for other programs; heavy imports inside them."""

from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.terminal.arguments import Config, Preset, Root, Settings, filled_path

if TYPE_CHECKING:
    from popalign_core.config import PipelineConfig, RuntimeConfig
    from storage.store import ArtifactRef, Store
    from tasks.common.stage_object import Stage

imports = typer.Typer(no_args_is_help=True, help="Import data made elsewhere.", rich_markup_mode=None)
exports = typer.Typer(no_args_is_help=True, help="Export data for other programs.", rich_markup_mode=None)


@imports.command("pairs")
def import_pairs(
    files: Annotated[
        list[Path],
        typer.Argument(parser=filled_path, metavar="FILE...", help="Parquet files with Pick-a-Pic's columns."),
    ],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    settings: Settings = None,
) -> None:
    """Encode pairs of compared images, and print their key for `popalign train`."""
    from flows.terminal.options import build_config
    from flows.terminal.terminal_tables import import_line
    from tasks.stages.pairs import import_pairs as stage

    def line(store: "Store", ref: "ArtifactRef", drops: list[dict[Any, Any]]) -> str:
        return import_line(store.manifest(ref).counts["pairs"], drops)

    _encode("pairs", stage, files, line, *build_config(preset, config, settings or [], root))


@imports.command("sets")
def import_sets(
    paths: Annotated[
        list[Path],
        typer.Argument(
            parser=filled_path,
            metavar="PATH...",
            help="Parquet files, or folders of them, as written by `popalign export preferences --format datasets`.",
        ),
    ],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    settings: Settings = None,
) -> None:
    """Encode preferred and dispreferred sets of images, and print their key for `popalign train`."""
    from flows.terminal.options import build_config
    from flows.terminal.terminal_tables import sets_line
    from tasks.stages.sets import import_sets as stage

    def line(store: "Store", ref: "ArtifactRef", drops: list[dict[Any, Any]]) -> str:
        members = store.read_table(ref, "preferences", ["set_id"])["set_id"]
        return sets_line(len(members), members.nunique(), drops)

    _encode("sets", stage, paths, line, *build_config(preset, config, settings or [], root))


def _encode(
    what: str,
    stage: "Stage[Any]",
    paths: list[Path],
    line: "Callable[[Store, ArtifactRef, list[dict[Any, Any]]], str]",
    config: "PipelineConfig",
    runtime: "RuntimeConfig",
) -> None:
    from flows.terminal.progress import console_progress
    from storage.store import ArtifactRef
    from tasks.common.reservations import reserve_made
    from tasks.common.stage_object import open_store, reference

    with console_progress() as progress:
        request = stage.request(config, files=paths)
        assert not isinstance(request, ArtifactRef)  # there always is something to do
        reserve_made([reference(open_store(runtime), request)], runtime, f"import-{what}")
        ref = stage.make(request, runtime, partial(progress, what))
    store = open_store(runtime)
    typer.echo(line(store, ref, store.read_table(ref, "drops").to_dict("records")), err=True)
    typer.echo(ref.key)


@imports.command("images")
def import_images(
    paths: Annotated[
        list[Path],
        typer.Argument(
            parser=filled_path,
            metavar="PATH...",
            help="Parquet files with image and prompt_id, prompt, text or caption, or folders: with metadata.csv, "
            "metadata.jsonl or metadata.parquet, or with one subfolder per prompt, named by its text.",
        ),
    ],
    preset: Preset = None,
    config: Config = None,
    root: Root = None,
    settings: Settings = None,
) -> None:
    """Import external images of the evaluation prompts, and print their key."""
    from flows.plan.execution import call_directly
    from flows.plan.runs import import_external_images
    from flows.terminal.options import build_config
    from flows.terminal.progress import console_progress
    from flows.terminal.terminal_tables import images_line
    from storage.store import Store
    from tasks.stages.imported import count_prompts

    pipeline, runtime = build_config(preset, config, settings or [], root)
    with console_progress() as progress:
        refs = import_external_images(paths, pipeline, runtime, call=call_directly(progress))
    store, ref = Store(runtime.root), refs["imported"]
    drops = store.read_table(ref, "drops").to_dict("records")
    n_covered, n_prompts = count_prompts(store, refs["benchmarks"], ref)
    typer.echo(images_line(store.manifest(ref).rows["images"], n_covered, n_prompts, drops), err=True)
    typer.echo(ref.key)


@exports.command("preferences")
def export_preferences(
    key: Annotated[str, typer.Argument(metavar="KEY", help="Key of stage preferences, as listed by `popalign plan`.")],
    path: Annotated[Path, typer.Argument(parser=filled_path, metavar="PATH", help="Folder or file to write.")],
    form: Annotated[
        Literal["pickapic", "datasets"],
        typer.Option("--format", help="Pairs for Diffusion-DPO trainers, or sets for Hugging Face `datasets`."),
    ] = "pickapic",
    root: Root = None,
) -> None:
    """Write preferences with their images as a folder of Parquet files."""
    from flows.terminal.options import DEFAULT_ROOT
    from flows.terminal.progress import console_progress
    from popalign_core.config import RuntimeConfig
    from tasks.publishing.export import export_preferences as run_export

    with console_progress() as progress:
        n_rows = run_export(
            key,
            path,
            form,
            runtime=RuntimeConfig(root=root or DEFAULT_ROOT),
            on_progress=lambda done, total: progress("export", done, total),
        )
    typer.echo(f"{n_rows} {'pair(s)' if form == 'pickapic' else 'member(s) of sets'} are in {path}")


@exports.command("model")
def export_trained_model(
    run: Annotated[str, typer.Argument(metavar="RUN", help="Name of a run, or key of a training.")],
    path: Annotated[Path, typer.Argument(parser=filled_path, metavar="PATH", help="Folder or file to write.")],
    merge: Annotated[bool, typer.Option("--merge", help="Merge the adapter into the model.")] = False,
    single_file: Annotated[
        bool,
        typer.Option(
            "--single-file",
            help="Write one .safetensors file with the original key names; SDXL and Stable Diffusion 1.5.",
        ),
    ] = False,
    root: Root = None,
) -> None:
    """Write the model of a run as a self-contained folder or a single file, from any store."""
    from flows.terminal.options import DEFAULT_ROOT
    from popalign_core.config import RuntimeConfig
    from tasks.publishing.export_model import export_model, export_single_file

    runtime = RuntimeConfig(root=root or DEFAULT_ROOT)
    is_apart = False
    if single_file:
        export_single_file(run, path, runtime=runtime)
    else:
        is_apart = export_model(run, path, merge=merge, runtime=runtime)
    if is_apart:
        typer.echo(f"the base model is in {path}, and its adapter in {path / 'lora'}; --merge combines them")
    else:
        typer.echo(f"the model is in {path}")
