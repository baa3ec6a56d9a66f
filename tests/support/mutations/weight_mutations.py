"""Mutations of the files that hold tensors."""

import itertools
import json
from pathlib import Path
from random import Random

import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mutations.editing import NO_FILES, cut, put
from mutations.judging import Equal, Mutant, Mutate, Refused
from mutations.model_world import FAMILIES, Model, ModelWorld

WEIGHTS_MISSING = 4


def weights_of(folder: Path) -> Path:
    return next(folder.glob("*.safetensors"))


def _place(model: Model, random: Random, folder: Path) -> tuple[Path, Path, Refused]:
    """A copy, the folder of one of its networks, and the refusal that names it."""
    copy, part = model.copy(folder), random.choice(list(model.networks))
    return copy, copy / part, Refused(WEIGHTS_MISSING, model.networks[part])


def _rewritten(file: Path, tensors: dict[str, Tensor]) -> None:
    put(file, save({name: tensor.contiguous() for name, tensor in tensors.items()}, metadata={"format": "pt"}))


def _tensors(change: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        model = world.any_model(random)
        copy, place, refused = _place(model, random, folder)
        tensors = load_file(weights_of(place))
        # counters are not needed for inference
        name = random.choice([each for each in sorted(tensors) if not each.endswith("num_batches_tracked")])
        tensor = tensors.pop(name)
        if change == "renamed":
            tensors[random.choice([f"{name}_old", f"module.{name}x", name.upper()])] = tensor
        elif change == "reshaped":
            axis = random.randrange(tensor.ndim) if tensor.ndim else 0
            more = tensor.narrow(axis, 0, 1) if tensor.ndim else tensor[None]
            tensors[name] = torch.cat([tensor, more], axis) if tensor.ndim else torch.cat([more, more])
        elif change == "half gone":
            tensors = {each: tensors[each] for each in sorted(tensors)[::2]}
        _rewritten(weights_of(place), tensors)
        return Mutant(copy, refused, model.taker)

    return mutate


def _more_in_diffusers(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """A network of diffusers reads its whole file."""
    model = world.any_model(random, *FAMILIES)
    copy = model.copy(folder)
    part = random.choice([name for name in model.networks if name in ("unet", "transformer", "vae")])
    tensors = load_file(weights_of(copy / part))
    name = random.choice(["mid.weight", f"{next(iter(tensors))}.more", "up_blocks.9.attentions.0.norm.bias"])
    _rewritten(weights_of(copy / part), tensors | {name: torch.zeros(random.randint(1, 3))})
    return Mutant(copy, Refused(WEIGHTS_MISSING, model.networks[part]), model.taker)


def _more_in_transformers(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """A text encoder may lie in the file of a whole CLIP, or with the numbers of its positions."""
    model = world.any_model(random, "sdxl", "sd15", "portraits")
    copy = model.copy(folder)
    tensors = load_file(weights_of(copy / "text_encoder"))
    more = {
        "logit_scale": torch.ones(()),
        "visual_projection.weight": torch.zeros(4, 4),
        "vision_model.encoder.layers.0.mlp.fc1.bias": torch.zeros(4),
        "text_model.embeddings.position_ids": torch.arange(len(next(iter(tensors.values()))))[None],
    }
    added = {name: more[name] for name in random.sample(list(more), random.randint(1, len(more)))}
    _rewritten(weights_of(copy / "text_encoder"), tensors | added)
    return Mutant(copy, Equal(), model.taker)


def _damaged(fault: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        model = world.any_model(random)
        copy, place, refused = _place(model, random, folder)
        file = weights_of(place)
        content = file.read_bytes()
        damaged = NO_FILES.get(fault)
        if fault == "header overwritten":
            damaged = content[:8] + random.randbytes(64).replace(b"{", b"x") + content[72:]
        put(file, cut(content, random) if damaged is None else damaged)
        return Mutant(copy, refused, model.taker)

    return mutate


def _lost(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random)
    copy, place, refused = _place(model, random, folder)
    file = weights_of(place)
    renamed = random.choice([None, "pytorch_model.bin", "weights.safetensors", f"{file.name}.tmp", "model.ckpt"])
    if renamed is None:
        file.unlink()
    else:
        file.rename(file.with_name(renamed))
    # the CLIP says what it lacks before it is anything's weights
    return Mutant(copy, Refused(WEIGHTS_MISSING, rf"{refused.names}|has no {file.name}"), model.taker)


def _without_folder(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random, *FAMILIES)
    copy = model.copy(folder)
    part = random.choice([*model.networks, *model.tokenizers, "scheduler"])
    (copy / part).rename(copy / f"{part}.old")
    return Mutant(copy, Refused(WEIGHTS_MISSING, f"cannot load {part} of .* no such folder"), model.taker)


def _half_precision_alone(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """Under the name of a variant, in whichever precision."""
    model = world.any_model(random)
    copy, variant = model.copy(folder), random.choice(["fp16", "bf16", "fp32"])
    for part in random.sample(list(model.networks), random.randint(1, len(model.networks))):
        file = weights_of(copy / part)
        file.rename(file.with_name(f"{file.stem}.{variant}.safetensors"))
    return Mutant(copy, Equal(), model.taker)


def _half_precision_beside(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """Other variants and formats beside the plain file, which counts."""
    model = world.any_model(random)
    copy, place, _ = _place(model, random, folder)
    file = weights_of(place)
    beside = random.choice([f"{file.stem}.fp16.safetensors", "pytorch_model.bin", "flax_model.msgpack", "tf_model.h5"])
    put(file.with_name(beside), "another's")
    return Mutant(copy, Equal(), model.taker)


def shard(file: Path, random: Random, variant: str = "") -> list[Path]:
    """The file in parts with an index, as the libraries save large ones; the index comes last."""
    tensors = load_file(file)
    names = random.sample(list(tensors), len(tensors))
    n = min(random.randint(2, 4), len(names))
    bounds = [0, *sorted(random.sample(range(1, len(names)), n - 1)), len(names)]
    parts = [names[start:end] for start, end in itertools.pairwise(bounds)]
    files, places = list[Path](), dict[str, str]()
    for number, part in enumerate(parts, start=1):
        files.append(file.with_name(f"{file.stem}{variant}-{number:05d}-of-{len(parts):05d}.safetensors"))
        _rewritten(files[-1], {name: tensors[name] for name in part})
        places |= dict.fromkeys(part, files[-1].name)
    size = sum(tensor.nbytes for tensor in tensors.values())
    index = {"metadata": {"total_size": size}, "weight_map": places}
    files.append(put(file.with_name(f"{file.name}.index.json"), json.dumps(index)))
    file.unlink()
    return files


def _sharded(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random)
    copy, place, _ = _place(model, random, folder)
    shard(weights_of(place), random)
    return Mutant(copy, Equal(), model.taker)


def _shard_broken(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random)
    copy, place, refused = _place(model, random, folder)
    files = shard(weights_of(place), random)
    file = random.choice(files)
    if file != files[-1] and random.random() < 0.4:
        file.unlink()
    else:
        content = file.read_bytes()
        put(file, random.choice([cut(content, random), *map(str.encode, NO_FILES.values())]))
    return Mutant(copy, refused, model.taker)


def _respelt(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """Tensors in another order, with other notes."""
    model = world.any_model(random)
    copy, place, _ = _place(model, random, folder)
    file = weights_of(place)
    tensors = load_file(file)
    notes = {"format": "pt", "modelspec.title": "tiny", "epoch": str(random.randint(1, 9))}
    put(file, save({name: tensors[name] for name in random.sample(list(tensors), len(tensors))}, metadata=notes))
    return Mutant(copy, Equal(), model.taker)


def _linked(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """As in the hub's cache: names are links to blobs."""
    model = world.any_model(random)
    copy = model.copy(folder)
    (folder / "blobs").mkdir()
    for number, file in enumerate(sorted(path for path in copy.rglob("*") if path.is_file())):
        blob = file.rename(folder / "blobs" / f"{number:064x}")
        file.symlink_to(blob)
    return Mutant(copy, Equal(), model.taker)


WEIGHTS: dict[str, Mutate] = {
    **{f"tensor {change}": _tensors(change) for change in ("removed", "renamed", "reshaped", "half gone")},
    "tensor more, diffusers": _more_in_diffusers,
    "tensor more, transformers": _more_in_transformers,
    **{f"weights: {fault}": _damaged(fault) for fault in ("truncated", "header overwritten", *NO_FILES)},
    "weights lost or named otherwise": _lost,
    "part lost": _without_folder,
    "half precision alone": _half_precision_alone,
    "other formats beside": _half_precision_beside,
    "weights in shards": _sharded,
    "a shard broken": _shard_broken,
    "tensors in another order": _respelt,
    "links to blobs": _linked,
}
