"""Mutations of what lies beside the weights: configurations, vocabularies, image processors, and strangers' files."""

import json
from pathlib import Path
from random import Random
from typing import Any

import diffusers

from mutations.editing import (
    BYSTANDERS,
    DIGITS,
    JSON_FAULTS,
    NO_FILES,
    break_json,
    put,
    put_json,
    read_document,
    respell,
)
from mutations.judging import Equal, Mutant, Mutate, Refused
from mutations.model_world import CLASSIFIERS, FAMILIES, Model, ModelWorld
from mutations.weight_mutations import WEIGHTS_MISSING

BETAS = ("sdxl", "sd15", "portraits")
BYTE_PAIRS = ("portraits", "clip")
"""Models whose tokenizers have merges."""
_SHAPES: dict[str, tuple[str, ...]] = {
    "UNet2DConditionModel": ("in_channels", "out_channels", "cross_attention_dim", "block_out_channels"),
    "SD3Transformer2DModel": ("num_layers", "num_attention_heads", "joint_attention_dim", "caption_projection_dim"),
    "FluxTransformer2DModel": ("num_layers", "num_attention_heads", "joint_attention_dim", "in_channels"),
    "AutoencoderKL": ("latent_channels", "block_out_channels", "in_channels"),
    "AutoencoderTiny": ("latent_channels", "encoder_block_out_channels", "num_decoder_blocks"),
    "CLIPTextModel": ("hidden_size", "intermediate_size", "num_hidden_layers", "vocab_size", "num_attention_heads"),
    "T5EncoderModel": ("d_model", "d_ff", "num_heads", "vocab_size", "d_kv"),
    "ViTForImageClassification": ("hidden_size", "intermediate_size", "num_attention_heads", "patch_size"),
    "EfficientNetForImageClassification": ("out_channels", "hidden_dim", "num_channels"),
    "ConvNextForImageClassification": ("hidden_sizes", "num_stages", "patch_size"),
}
_SHAPES["CLIPTextModelWithProjection"] = _SHAPES["CLIPTextModel"]


def _broken_settings(fault: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        model = world.any_model(random)
        copy, part = model.copy(folder), random.choice(list(model.networks))
        _break(copy / part / "config.json", fault, random)
        return Mutant(copy, Refused(WEIGHTS_MISSING, f"{model.networks[part]}|config.json"), model.taker)

    return mutate


def _break(file: Path, fault: str, random: Random) -> None:
    put(file, break_json(file.read_text(encoding="utf-8"), fault, random))


def _broken_index(fault: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        model = world.any_model(random, *FAMILIES)
        copy = model.copy(folder)
        _break(copy / "model_index.json", fault, random)
        return Mutant(copy, Refused(WEIGHTS_MISSING, r"model_index\.json"), model.taker)

    return mutate


def _broken_scheduler(fault: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        model = world.any_model(random, *FAMILIES)
        copy = model.copy(folder)
        _break(copy / "scheduler" / "scheduler_config.json", fault, random)
        return Mutant(copy, Refused(WEIGHTS_MISSING, r"scheduler_config\.json"), model.taker)

    return mutate


def _any_network(world: ModelWorld, random: Random, folder: Path) -> tuple[Model, Path, str, dict[str, Any], str]:
    """A model and the copy of it; a network's part, configuration and class."""
    model = world.any_model(random, *FAMILIES, *CLASSIFIERS)
    copy, part = model.copy(folder), random.choice(list(model.networks))
    document = read_document(copy / part / "config.json")
    return model, copy, part, document, document.get("_class_name") or document["architectures"][0]


def _wrong_shape(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model, copy, part, document, kind = _any_network(world, random, folder)
    wrong = random.choice(["wide", {"size": 8}, -3, [], "32", 10**7])
    put_json(copy / part / "config.json", document | {random.choice(_SHAPES[kind]): wrong})
    return Mutant(copy, Refused(WEIGHTS_MISSING, model.networks[part]), model.taker)


def _other_class(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random, *FAMILIES)
    copy = model.copy(folder)
    index = read_document(copy / "model_index.json")
    part = random.choice([*model.networks, *model.tokenizers, "scheduler", "_class_name"])
    if part == "_class_name":
        wrong: Any = random.choice(["NoPipeline", "UNet2DConditionModel", 7, None, [], "__class__"])
    else:
        library, name = index[part]
        wrong = random.choice(
            [[library, f"{name}9"], ["my_library", name], name, [library], [None, None], {}, [library, None], [1, 2]]
        )
    if part.endswith("_3") and wrong == [None, None]:
        wrong = {}  # SD3 may be without its T5
    put_json(copy / "model_index.json", index | {part: wrong})
    return Mutant(copy, Refused(WEIGHTS_MISSING, part if part != "_class_name" else "the pipeline"), model.taker)


def _other_scheduler(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """Noise levels that are not those of the betas in the file."""
    model = world.any_model(random, *FAMILIES)
    copy = model.copy(folder)
    kinds = ["EDMEulerScheduler", "EDMDPMSolverMultistepScheduler", "IPNDMScheduler", "EDMScheduler9"]
    name = random.choice(kinds)
    if (kind := getattr(diffusers, name, None)) is not None:
        (copy / "scheduler" / "scheduler_config.json").unlink()
        kind().save_pretrained(copy / "scheduler")
    index = read_document(copy / "model_index.json")
    put_json(copy / "model_index.json", index | {"scheduler": ["diffusers", name]})
    return Mutant(copy, Refused(WEIGHTS_MISSING, f"scheduler.*{name}"), model.taker)


_SCHEDULES: dict[str, tuple[Any, ...]] = {
    "beta_schedule": ("exponential", "karras", 3, None, ["linear"]),
    "beta_start": (-0.1, "small", None, [0.1], float("nan"), float("inf"), True),
    "beta_end": (0.0, 1.5, "large", None, {}),
    "num_train_timesteps": (0, -1000, 9.5, "1000", None, [1000]),
    "prediction_type": ("flow_prediction", "x0", 3),
    "timestep_spacing": ("wide", 1),
    "steps_offset": (-1, 1000, "one", 0.5),
    "trained_betas": ([0.1, 0.2], "many", 7),
    "use_flow_sigmas": (True,),
    "_class_name": ("EDMEulerScheduler", "NoScheduler"),
}


def _wrong_schedule(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random, *BETAS)
    copy, name = model.copy(folder), random.choice(list(_SCHEDULES))
    file, wrong = copy / "scheduler" / "scheduler_config.json", random.choice(_SCHEDULES[name])
    put_json(file, read_document(file) | {name: wrong})
    told = "is of" if name == "_class_name" else name
    return Mutant(copy, Refused(WEIGHTS_MISSING, rf"scheduler_config\.json.* {told}"), model.taker)


def _with_words(model: Model, random: Random, folder: Path) -> tuple[Path, Path, Refused]:
    copy, part = model.copy(folder), random.choice(list(model.tokenizers))
    return copy, copy / part, Refused(WEIGHTS_MISSING, model.tokenizers[part])


def _vocabulary_cut(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random, *FAMILIES, "clip")
    copy, place, refused = _with_words(model, random, folder)
    document = read_document(place / "tokenizer.json")
    words = document["model"]["vocab"]
    kept = list(words)[: int(len(words) * random.uniform(0.1, 0.8))]
    document["model"]["vocab"] = {word: words[word] for word in kept} if isinstance(words, dict) else kept
    put_json(place / "tokenizer.json", document)
    return Mutant(copy, refused, model.taker)


def _merges_cut(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random, *BYTE_PAIRS)
    copy, place, refused = _with_words(model, random, folder)
    document = read_document(place / "tokenizer.json")
    merges = document["model"]["merges"]
    document["model"]["merges"] = merges[: int(len(merges) * random.uniform(0.0, 0.9))]
    put_json(place / "tokenizer.json", document)
    return Mutant(copy, refused, model.taker)


def _words_broken(fault: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        model = world.any_model(random, *FAMILIES, "clip")
        copy, place, refused = _with_words(model, random, folder)
        file = place / "tokenizer.json"
        if fault == "lost":
            file.unlink()
        else:
            _break(file, fault, random)
        return Mutant(copy, refused, model.taker)

    return mutate


def _hub_layout(copy: Path, place: Path) -> None:
    """A vocabulary and merges in place of one file."""
    model = read_document(place / "tokenizer.json")["model"]
    (place / "tokenizer.json").unlink()
    put_json(place / "vocab.json", model["vocab"])
    merges = [" ".join(pair) if isinstance(pair, list) else pair for pair in model["merges"]]
    put(place / "merges.txt", "\n".join(["#version: 0.2", *merges, ""]))


def _two_files(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random, "sdxl", "sd15", "portraits")
    copy, place, _ = _with_words(model, random, folder)
    _hub_layout(copy, place)
    return Mutant(copy, Equal(), model.taker)


def _two_files_broken(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random, "portraits")
    copy, place, refused = _with_words(model, random, folder)
    _hub_layout(copy, place)
    file = place / random.choice(["vocab.json", "merges.txt"])
    lines = file.read_text(encoding="utf-8").splitlines()
    if random.random() < 0.4:
        file.unlink()
    elif file.name == "merges.txt":
        put(file, "\n".join(lines[: random.randrange(len(lines) // 2)]))
    else:
        _break(file, random.choice(["cut", "empty object", "deep", *NO_FILES]), random)
    return Mutant(copy, refused, model.taker)


def _more_files(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random)
    copy = model.copy(folder)
    places = [copy, *(path for path in copy.iterdir() if path.is_dir())]
    for name in random.sample(list(BYSTANDERS), random.randint(1, len(BYSTANDERS))):
        put(random.choice(places) / name, BYSTANDERS[name])
    return Mutant(copy, Equal(), model.taker)


def _respelt(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model = world.any_model(random)
    copy = model.copy(folder)
    files = sorted(file for file in copy.rglob("*.json") if file.name != "tokenizer.json")
    for file in random.sample(files, random.randint(1, len(files))):
        put(file, respell(read_document(file), random))
    return Mutant(copy, Equal(), model.taker)


def _noted(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """Settings that older and newer versions of the libraries leave in a file."""
    model = world.any_model(random)
    copy, part = model.copy(folder), random.choice(list(model.networks))
    file = copy / part / "config.json"
    notes = {"_name_or_path": "/data/run 7", "_diffusers_version": "0.99.0"}
    if "_class_name" not in read_document(file):
        notes["transformers_version"] = "3.0.0"
    put_json(file, read_document(file) | notes)
    return Mutant(copy, Equal(), model.taker)


def _labels_cut(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """The head has more outputs than labels, or none has a number."""
    model = world.any_model(random, *CLASSIFIERS)
    copy = model.copy(folder)
    document = read_document(copy / "config.json")
    labels = random.choice([{"0": "a"}, {"0": "a", "1": "b", "2": "c"}, {"first": "a", "second": "b"}])
    put_json(copy / "config.json", document | {"id2label": labels, "label2id": {v: k for k, v in labels.items()}})
    return Mutant(copy, Refused(WEIGHTS_MISSING, "the image classifier"), model.taker)


def _digits_in_a_shape(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    model, copy, part, document, kind = _any_network(world, random, folder)
    text = json.dumps(document | {random.choice(_SHAPES[kind]): "@"}).replace('"@"', DIGITS)
    put(copy / part / "config.json", text)
    return Mutant(copy, Refused(WEIGHTS_MISSING, f"{model.networks[part]}|config.json"), model.taker)


SETTINGS: dict[str, Mutate] = {
    **{f"config.json: {fault}": _broken_settings(fault) for fault in JSON_FAULTS},
    "config.json: a shape of another type": _wrong_shape,
    "config.json: 5,000 digits in a shape": _digits_in_a_shape,
    **{f"model_index.json: {fault}": _broken_index(fault) for fault in JSON_FAULTS},
    "model_index.json: another class": _other_class,
    **{f"scheduler_config.json: {fault}": _broken_scheduler(fault) for fault in JSON_FAULTS},
    "another scheduler": _other_scheduler,
    "another noise schedule": _wrong_schedule,
    "vocabulary cut": _vocabulary_cut,
    "merges cut": _merges_cut,
    **{
        f"tokenizer.json: {fault}": _words_broken(fault)
        for fault in ("lost", "cut", "empty object", "list", "null", "deep", *NO_FILES)
    },
    "vocab.json and merges.txt": _two_files,
    "vocab.json or merges.txt broken": _two_files_broken,
    "more files": _more_files,
    "JSON in another spelling": _respelt,
    "notes in config.json": _noted,
    "labels of another head": _labels_cut,
}  # fmt: skip
