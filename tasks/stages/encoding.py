"""What imports of preferences share: images go through the VAE once, in shards that survive a kill, and captions
become prompts with their embeddings. The images themselves are not kept.
"""

import os
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any, Generic, Protocol, Self, TypeVar

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from popalign_core.config import ModelConfig, PipelineConfig, RuntimeConfig, SamplingConfig
from popalign_core.errors import InputError
from popalign_core.ids import content_id
from storage.store import ArtifactRef, Build, Store
from tasks.common.image_tables import NO_SEED, drops_table
from tasks.common.measuring import base_model, sampling_told
from tasks.common.stage_object import Progress, View, counted, drop_fields, find_published, set_threads

if TYPE_CHECKING:
    from torch import Tensor

    from storage.formats.external_files import RowFile

_DROPPED = "dropped: "
"""Begins the name of what a shard counted as dropped; the reason follows."""


class Row(Protocol):
    """A record with images."""

    @property
    def images(self) -> tuple[bytes | None, ...]:
        """Encoded; None where there is none."""


RowT = TypeVar("RowT", bound=Row)


@dataclass(frozen=True)
class Encoder(Generic[RowT]):
    """How the rows of one sort of files become latents.

    Attributes:
        files: Hold the rows.
        n_images: A row.
        unit: What a row is, in the plural; its shards count them by this name.
        chunks: Files, rows a chunk and the numbers of the chunks wanted, to each chunk's number and its rows.
        fault: Why a row cannot be used, as far as can be told without decoding its images.
        tables: The tables of a shard by name, of the rows that are kept; of `images` without size and latents.
    """

    files: "Sequence[RowFile]"
    n_images: int
    unit: str
    chunks: "Callable[[Sequence[RowFile], int, Set[int]], Iterator[tuple[int, Iterator[RowT]]]]"
    fault: Callable[[RowT], str | None]
    tables: Callable[[Sequence[RowT]], Mapping[str, pd.DataFrame]]

    @property
    def n_rows(self) -> int:
        """In all files."""
        return sum(file.n_rows for file in self.files)


class EncodingView(View):
    """What decides the latents and the embeddings of an import, and what training on them depends on.

    Attributes:
        files: As `storage.formats.external_files.open_files` gives them.
        model: Encodes.
        sampling: The images' size; the guidance scale where the model is told it.
    """

    files: tuple[Any, ...]
    model: ModelConfig
    sampling: SamplingConfig

    @classmethod
    def of(cls, config: PipelineConfig, files: "Sequence[RowFile]") -> Self:
        """Of opened files."""
        model = drop_fields(base_model(config.model), "storage")
        return cls(files=tuple(files), model=model, sampling=sampling_told(config))

    def hashed(self) -> dict[str, Any]:
        """Files by their bytes, wherever they lie and in whatever order."""
        return {"files": [file.sha256 for file in self.files]} | self.hashed_encoding()

    def hashed_encoding(self) -> dict[str, Any]:
        """All but the files."""
        from popalign_core.models.loading import model_hash, reads_guidance

        size: dict[str, Any] = {"width": self.sampling.width, "height": self.sampling.height}
        if reads_guidance(self.model):
            size["guidance_scale"] = self.sampling.guidance_scale
        return {"sampling": size, "model": {"dtype": self.model.dtype, "hash": model_hash(self.model)}}


def find_encoded(store: Store, stage: str, key: str, config: PipelineConfig, *, what: str, made_by: str) -> ArtifactRef:
    """The published import of a key, if the configuration can train on it.

    Raises:
        InputError: When there is no such artifact, or another model or size encoded it.
    """
    ref = find_published(store, stage, key, what=what, made_by=made_by)
    made, asked = store.manifest(ref).payload["config"], EncodingView.of(config, []).hashed_encoding()
    for part, name in (("model", "base model"), ("sampling", "image size or guidance scale")):
        if made[part] != asked[part]:
            raise InputError(
                f"{ref.key} was imported for the {name} {made[part]}, this configuration has {asked[part]}; "
                "give the --preset, --config and --set of the import, or import again with these"
            )
    return ref


def encode_files(
    view: EncodingView, build: Build, encoder: Encoder[RowT], runtime: RuntimeConfig, on_progress: Progress
) -> tuple[Any, Counter[str]]:
    """Write the latents and the tables of all shards that are not there yet.

    Returns:
        The pipeline of the view's model, and how many rows of all shards were dropped, by reason.

    Raises:
        MissingWeightsError: When the model's weights are absent.
    """
    from popalign_core.models.loading import load_pipeline, resolve_device

    set_threads(runtime)
    pipeline = load_pipeline(view.model, device=resolve_device(runtime.device))
    return pipeline, _encode_shards(build, encoder, pipeline.vae, view.sampling, runtime, on_progress)


def _encode_shards(
    build: Build,
    encoder: Encoder[RowT],
    vae: Any,
    sampling: SamplingConfig,
    runtime: RuntimeConfig,
    on_progress: Progress,
) -> Counter[str]:
    size, n_rows = max(1, runtime.shard_size // encoder.n_images), encoder.n_rows
    build.use_shard_size(size)
    lengths = [min(size, n_rows - start) for start in range(0, n_rows, size)]
    todo = {number for number in range(len(lengths)) if not build.shard_done(number)}
    done = sum(length for number, length in enumerate(lengths) if number not in todo)
    on_progress(done, n_rows)
    for number, rows in encoder.chunks(encoder.files, size, todo):
        read = counted(rows, on_progress, done, n_rows)
        kept, latents, drops = _encode(read, encoder.fault, vae, sampling, runtime.batch_size)
        _write_shard(build, number, encoder.tables(kept), latents, sampling)
        counts = {"images": len(kept) * encoder.n_images, encoder.unit: len(kept)}
        build.mark_shard(number, counts | {_DROPPED + reason: n for reason, n in drops.items()})
        done += lengths[number]
    found = build.sum_counts().items()
    return Counter({name.removeprefix(_DROPPED): n for name, n in found if name.startswith(_DROPPED)})


def _encode(
    rows: Iterable[RowT], fault_of: Callable[[RowT], str | None], vae: Any, sampling: SamplingConfig, batch_size: int
) -> "tuple[list[RowT], list[Tensor], Counter[str]]":
    """The rows that can be used, their images' latents batch by batch (a row's images after each other), and how
    many rows were dropped for what.
    """
    from popalign_core.models.pixels import UNDECODABLE
    from popalign_core.models.vae import encode_pixels

    kept: list[RowT] = []
    latents: list[Tensor] = []
    drops: Counter[str] = Counter()
    batch: list[NDArray[np.uint8]] = []
    for row in rows:
        fault = fault_of(row)
        images = [] if fault else _resized_images(row, sampling)
        if len(images) < len(row.images):
            drops[fault or UNDECODABLE] += 1
            continue
        kept.append(replace(row, images=(None,) * len(images)))  # type: ignore[type-var]  # the bytes are done with
        batch += images
        if len(batch) >= batch_size:
            latents.append(encode_pixels(vae, np.stack(batch)))
            batch = []
    if batch:
        latents.append(encode_pixels(vae, np.stack(batch)))
    return kept, latents, drops


def _resized_images(row: Row, sampling: SamplingConfig) -> list[NDArray[np.uint8]]:
    """The images in the configured size; fewer where one cannot be decoded."""
    from popalign_core.models.pixels import fit_image

    fitted = (fit_image(data, sampling.width, sampling.height) for data in row.images if data)
    return [image for image in fitted if image is not None]


def _write_shard(
    build: Build,
    number: int,
    tables: Mapping[str, pd.DataFrame],
    latents: "Sequence[Tensor]",
    sampling: SamplingConfig,
) -> None:
    import torch

    from tasks.common.tensors import write_tensors

    name = f"latents-{number:05d}.safetensors"
    if latents:
        write_tensors(build.folder / name, {"latents": torch.cat(list(latents))})
    size = {"width": sampling.width, "height": sampling.height}
    places = {"image": None, "latents_file": name, "latents_row": range(len(tables["images"]))}
    for table, frame in tables.items():
        build.write_table(table, frame.assign(**size, **places) if table == "images" else frame, shard=number)


def caption_id(caption: str) -> str:
    """Id of the prompt that a caption becomes."""
    return content_id("prompt", caption, "neutral", "train")


def imported_image_id(ref: ArtifactRef, *place: int) -> str:
    """Id of an imported image: the key stands for the files' content, the place is the one in that."""
    return content_id("image", ref.key, *place)


def image_table(rows: Iterable[tuple[str, str, int]]) -> pd.DataFrame:
    """Table `images` without size and latents, of `image_id`, `prompt_id` and `index`."""
    return pd.DataFrame([(*row, NO_SEED) for row in rows], columns=["image_id", "prompt_id", "index", "seed"])


def nothing_used(n_rows: int, unit: str, dropped: Mapping[str, int], needs: str) -> InputError:
    """What to raise when no row of an import can be used."""
    return InputError(f"none of the {n_rows} {unit} can be used: {dict(sorted(dropped.items()))}; {needs}")


def write_rest(
    build: Build,
    pipeline: Any,
    captions: Iterable[str | None],
    used: Set[str],
    dropped: Mapping[str, int],
    batch_size: int,
) -> None:
    """What an import has once, and not a shard: tables `prompts`, `retained` (empty) and `drops`, and the embeddings.

    Args:
        build: Of the import.
        pipeline: Its text encoders embed.
        captions: Of all rows, in order.
        used: Ids of those that become prompts.
        dropped: From `encode_files`.
        batch_size: Captions embedded at once.
    """
    prompts = _caption_prompts(captions, used, build.ref.stage)
    build.write_table("prompts", prompts)
    build.write_table("retained", pd.DataFrame(columns=["image_id", "prompt_id", "kind"]))
    build.write_table("drops", drops_table(build.ref.stage, dropped))
    _write_embeddings(build, pipeline, prompts, batch_size)


def _caption_prompts(captions: Iterable[str | None], used: Set[str], source: str) -> pd.DataFrame:
    """Table `prompts`: every caption whose id is used once, in the order given."""
    texts = {caption_id(text): text for text in captions if text}
    rows = {"prompt_id": [name for name in texts if name in used]}
    kept = [texts[name] for name in rows["prompt_id"]]
    constant = {"kind": "neutral", "split": "train", "parent_id": None, "template": "{}", "source": source}
    constant["benchmark"] = "neutral"
    identity = pd.Series([{} for _ in kept], dtype=object)
    return pd.DataFrame(rows).assign(text=kept, subject=kept, identity=identity, **constant)


def _write_embeddings(build: Build, pipeline: Any, prompts: pd.DataFrame, batch_size: int) -> None:
    """Embeddings of the captions and, last, of the empty one; once, for one file cannot be done in shards."""
    from popalign_core.models.embeddings import embed_prompts
    from tasks.common.tensors import write_embeddings

    path = build.folder / "embeddings.safetensors"
    if not os.path.exists(path):
        texts = [*prompts["text"], ""]
        write_embeddings(path, [*prompts["prompt_id"], ""], embed_prompts(pipeline, texts, batch_size))
