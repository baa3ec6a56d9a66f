"""`popalign study create`, `curate` and `label`: studies made of a run's images."""

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import typer

from flows.review.study_arguments import Database, Name, Root, links_command, open_database, read_text
from flows.terminal.arguments import path_option
from popalign_core.errors import ConfigError

if TYPE_CHECKING:
    from pydantic import BaseModel

    from storage.store import Store

Run = Annotated[str, typer.Option(help="Run under runs/ whose images are used.")]
Instructions = Annotated[
    Path | None,
    path_option("Markdown file; default: a shipped text."),
]


def create(
    name: Name,
    systems: Annotated[
        tuple[str, str],
        typer.Argument(
            metavar="SYSTEM REFERENCE", help="Two systems, such as aligned base; win rates are for the first."
        ),
    ],
    run: Annotated[str, typer.Option(help="Run or comparison under runs/ that has both systems.")],
    root: Root = None,
    database: Database = None,
    kind: Annotated[
        Literal["sets", "images"],
        typer.Option(help="Sets of 5 with three raters per pair, or single images with five."),
    ] = "sets",
    benchmark: Annotated[str, typer.Option(help="Benchmark whose evaluation prompts are used.")] = "neutral",
    instructions: Instructions = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Override a field, such as n_raters=5, n_pairs=40, set_size=4, n_checks=6; repeatable.",
        ),
    ] = None,
) -> None:
    """Create a study that compares two systems on the same prompts and seeds."""
    from popalign_core.config.review import KINDS, StudyConfig
    from tasks.studies.pairwise import create_study, find_samples

    with _config_errors(StudyConfig):
        config = StudyConfig.model_validate(KINDS[kind].model_dump() | _parse(settings))
    text, store = _check_text(name, instructions), _open_store(root)
    source = find_samples(store, run, systems)
    opened = open_database(database, root, create=True)
    n_pairs = create_study(opened, store, name, source, config=config, benchmark=benchmark, instructions=text)
    _invite(links_command(name, "N", database, root), f"{n_pairs} pair(s)", "raters")


def curate(
    name: Name,
    run: Run,
    root: Root = None,
    database: Database = None,
    instructions: Instructions = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set",
            metavar="FIELD=VALUE",
            help="Override a field, such as set_size=8, n_sets=10, balance=hidden, n_raters=2; repeatable.",
        ),
    ] = None,
) -> None:
    """Create a study in which people curate the preferred sets, one image at a time (Appendix B)."""
    from popalign_core.config.review import CurateConfig
    from tasks.studies.curation import create_curation

    text, store = _check_text(name, instructions), _open_store(root)
    opened = open_database(database, root, create=True)
    with _config_errors(CurateConfig):
        n_sets, n_left_out = create_curation(opened, store, name, run, settings=_parse(settings), instructions=text)
    left_out = f", {n_left_out} prompt(s) have too few images" if n_left_out else ""
    _invite(links_command(name, "N", database, root), f"{n_sets} set(s){left_out}", "curators")


def label(
    name: Name,
    run: Run,
    images: Annotated[
        str, typer.Option(help="Images: `sample` (those of the preferences), or for example `sample-eval:base`.")
    ] = "sample",
    axes: Annotated[
        list[str] | None,
        typer.Option(
            "--axis",
            metavar="AXIS[=CLASS,...]",
            help="Axis to label, with further classes, such as gender=non-binary; repeatable. Default: all axes of the "
            "run.",
        ),
    ] = None,
    root: Root = None,
    database: Database = None,
    instructions: Instructions = None,
    settings: Annotated[
        list[str] | None,
        typer.Option(
            "--set", metavar="FIELD=VALUE", help="Override a field, such as n_images=200, n_raters=3; repeatable."
        ),
    ] = None,
) -> None:
    """Create a study in which people label single images."""
    from popalign_core.config.review import LabelConfig
    from tasks.studies.labelling import create_labelling

    text, store, classes = _check_text(name, instructions), _open_store(root), _parse_axes(axes or [])
    opened, given = open_database(database, root, create=True), _parse(settings)
    with _config_errors(LabelConfig):
        n_images = create_labelling(
            opened, store, name, run, classes=classes, settings=given, node=images, instructions=text
        )
    _invite(links_command(name, "N", database, root), f"{n_images} image(s)", "raters")


def _parse(settings: list[str] | None) -> dict[str, Any]:
    from flows.terminal.options import parse_setting

    return dict(parse_setting(setting) for setting in settings or [])


def _parse_axes(axes: list[str]) -> dict[str, tuple[str, ...]]:
    """Axis -> classes named after it."""
    parts = (axis.partition("=") for axis in axes)
    return {name: tuple(each.strip() for each in classes.split(",") if each.strip()) for name, _, classes in parts}


@contextmanager
def _config_errors(model: "type[BaseModel]") -> Iterator[None]:
    """What pydantic refuses, as the project's error."""
    from pydantic import ValidationError

    from popalign_core.config import describe_problems

    try:
        yield
    except ValidationError as error:
        raise ConfigError(
            "the study's settings are invalid:\n" + "\n".join(describe_problems(error, model, whole="study"))
        ) from error


def _check_text(name: str, instructions: Path | None) -> str | None:
    """Refuse a name that no study can have; the text of the instructions, if there are any."""
    from storage.keys import check_name

    check_name("study", name)
    if len(name) > 64:
        raise ConfigError(f"the study's name has {len(name)} characters; give at most 64")
    return None if instructions is None else read_text(instructions)


def _open_store(root: str | None) -> "Store":
    from flows.terminal.options import DEFAULT_ROOT
    from storage.store import Store

    return Store(root or DEFAULT_ROOT)


def _invite(command: str, made: str, whom: str) -> None:
    typer.echo(f"{made}; now `{command}` invites {whom}")
