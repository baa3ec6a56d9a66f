"""Mutations of the files that say how a model prepares its images."""

from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

from mutations.editing import JSON_FAULTS, break_json, put, put_json, read_document, respell
from mutations.judging import Equal, Mutant, Mutate, Refused
from mutations.model_world import CLASSIFIERS, ModelWorld
from mutations.weight_mutations import WEIGHTS_MISSING


def _processor(change: Callable[[dict[str, Any], Random], dict[str, Any]], *models: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        model = world.any_model(random, *(models or (*CLASSIFIERS, "clip")))
        copy = model.copy(folder)
        file = copy / "preprocessor_config.json"
        put_json(file, change(read_document(file), random))
        return Mutant(copy, Refused(WEIGHTS_MISSING, "image processor|preprocessor_config"), model.taker)

    return mutate


def _processor_broken(fault: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        model = world.any_model(random, *CLASSIFIERS, "clip")
        copy = model.copy(folder)
        file = copy / "preprocessor_config.json"
        put(file, break_json(file.read_text(encoding="utf-8"), fault, random))
        return Mutant(copy, Refused(WEIGHTS_MISSING, r"preprocessor_config\.json"), model.taker)

    return mutate


def _shared_processor(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """As transformers 5 saves it."""
    model = world.any_model(random, *CLASSIFIERS, "clip")
    copy = model.copy(folder)
    document = read_document(copy / "preprocessor_config.json")
    (copy / "preprocessor_config.json").unlink()
    more = random.choice([{}, {"processor_class": "CLIPProcessor"}, {"tokenizer": None}])
    put(copy / "processor_config.json", respell(more | {"image_processor": document}, random))
    return Mutant(copy, Equal(), model.taker)


def _processor_respelt(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """Keys of nothing, the class of another backend, other spellings of one number."""
    model = world.any_model(random, *CLASSIFIERS)
    copy = model.copy(folder)
    document = read_document(copy / "preprocessor_config.json")
    more: dict[str, Any] = {"device": None, "disable_grouping": None, "_processor_class": None}
    if random.random() < 0.5:
        more["image_processor_type"] = f"{document['image_processor_type']}Fast"
    put(copy / "preprocessor_config.json", respell(document | more, random))
    return Mutant(copy, Equal(), model.taker)


_FAULTS: dict[str, tuple[Callable[[dict[str, Any], Random], dict[str, Any]], tuple[str, ...]]] = {
    "key unknown": (lambda document, random: document | {random.choice(["sharpen", "gamma", "do_flip"]): 2}, ()),
    "class unknown": (
        lambda document, random: document | {"image_processor_type": random.choice(["OurProcessor", "", 7])}, (),
    ),
    "mean of another length": (lambda document, random: document | {"image_mean": [0.5] * random.choice([1, 2, 4])},
                               CLASSIFIERS),
    "deviation of nothing": (lambda document, random: document | {"image_std": [0, 1, 1]}, CLASSIFIERS),
    "filter unknown": (
        lambda document, random: document | {"resample": random.choice([77, -1, "cubic", 3.5, [3], True])}, (),
    ),
    "switch of another type": (
        lambda document, random: document
        | {random.choice(["do_resize", "do_rescale", "do_normalize"]): random.choice(["false", "no", 0, 1, []])},
        (),
    ),
    "size of nothing": (
        lambda document, random: document | {"size": random.choice([{"wide": 3}, {"shortest_edge": -4}, "big", [16]])},
        (),
    ),
    "another model's key": (lambda document, random: document | {"crop_pct": 0.9}, ("vit",)),
    "digits": (lambda document, random: document | {"rescale_factor": "1/255"}, ()),
}  # fmt: skip


PROCESSORS: dict[str, Mutate] = {
    **{f"image processor: {name}": _processor(change, *names) for name, (change, names) in _FAULTS.items()},
    **{f"preprocessor_config.json: {fault}": _processor_broken(fault) for fault in JSON_FAULTS},
    "processor_config.json in its place": _shared_processor,
    "image processor in another spelling": _processor_respelt,
}
