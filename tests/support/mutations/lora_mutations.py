"""Mutations of LoRA files and of peft's adapter folders."""

import copy
from collections.abc import Callable
from functools import cached_property
from pathlib import Path
from random import Random
from typing import Any

import peft
import torch
from safetensors.torch import load_file, save
from torch import Tensor

from mutations.editing import JSON_FAULTS, NO_FILES, break_json, copy_linked, cut, put, put_json, read_document, respell
from mutations.judging import Equal, Mutant, Mutate, Refused, Taker
from mutations.model_world import ModelWorld, prints_of, sample
from mutations.weight_mutations import WEIGHTS_MISSING
from popalign_core.models.loading import lora_file
from popalign_core.models.lora import fuse_lora

UNFIT = 2
"""The exit code for a LoRA that is another model's, or none."""
LAYERS = {
    "sdxl": ("unet", ("down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k", "down_blocks.1.resnets.0.conv1")),
    "flux-dev": ("transformer", ("transformer_blocks.1.attn.add_k_proj", "single_transformer_blocks.0.attn.to_q")),
}
FORMATS = ("diffusers", "kohya", "flux", "adapter")
_SETTINGS, _WEIGHTS = "adapter_config.json", "adapter_model.safetensors"
Weights = dict[str, Tensor]


class LoraTakers:
    """A LoRA in each format, and fusing it."""

    def __init__(self, world: ModelWorld) -> None:
        self._world, self._root = world, world.root / "loras"

    def taker(self, form: str) -> Taker:
        return self._takers[form]

    @cached_property
    def _takers(self) -> dict[str, Taker]:
        self._root.mkdir()
        files = {form: self._root / f"{form}.safetensors" for form in FORMATS}
        put(files["diffusers"], save(self._draw("sdxl")))
        put(files["flux"], save(self._draw("flux-dev")))
        put(files["kohya"], save(_as_kohya(self._draw("sdxl"))))
        files["adapter"] = self._root / "adapter"
        _save_adapter(copy.deepcopy(self._world.pipelines["sdxl"].unet), files["adapter"])
        return {form: self._take(form, file) for form, file in files.items()}

    def _take(self, form: str, file: Path) -> Taker:
        family = "flux-dev" if form == "flux" else "sdxl"
        folder = str(self._world.model(family).taker.pristine)

        def read(given: Path, scratch: Path) -> Any:
            pipeline = copy.deepcopy(self._world.pipelines[family])
            found = lora_file(str(given))
            fuse_lora(pipeline, found, 1.0)
            return prints_of(pipeline)

        def command(given: Path, scratch: Path) -> Any:
            return sample({"name": folder, "lora": str(given)}, scratch)

        return Taker(file, read, command if family == "sdxl" else None)

    def _draw(self, family: str) -> Weights:
        """A and B of each layer, of rank 2 and 3, exact in half precision."""
        part, layers = LAYERS[family]
        module, generator = getattr(self._world.pipelines[family], part), torch.Generator().manual_seed(0)
        found: Weights = {}
        for rank, name in enumerate(layers, start=2):
            shape = module.get_submodule(name).weight.shape
            for side, sizes in (("A", (rank, *shape[1:])), ("B", (shape[0], rank, *[1] * (len(shape) - 2)))):
                drawn = torch.randn(sizes, generator=generator).half().float()
                found[f"{part}.{name}.lora_{side}.weight"] = drawn
        return found


def takers(world: ModelWorld) -> LoraTakers:
    found: LoraTakers | None = world.__dict__.get("loras")
    return found or world.__dict__.setdefault("loras", LoraTakers(world))


def _as_kohya(weights: Weights) -> Weights:
    named: Weights = {}
    for name, tensor in weights.items():
        layer, end = name.removeprefix("unet.").rsplit(".lora_", 1)
        key = f"lora_unet_{layer.replace('.', '_')}"
        named[f"{key}.lora_{'down' if end[0] == 'A' else 'up'}.weight"] = tensor
        named[f"{key}.alpha"] = torch.tensor(1.5)
    return named


def _save_adapter(unet: Any, folder: Path) -> None:
    settings = peft.LoraConfig(target_modules=list(LAYERS["sdxl"][1]), r=4, lora_alpha=6, rank_pattern={"to_k": 2})
    adapted = peft.get_peft_model(unet, settings)
    generator = torch.Generator().manual_seed(0)
    for name, parameter in adapted.named_parameters():
        if "lora_" in name:
            parameter.data = torch.randn(parameter.shape, generator=generator).half().float()
    adapted.save_pretrained(folder)


def _given(world: ModelWorld, random: Random, folder: Path, *forms: str) -> tuple[Path, Path, Taker]:
    """What the product is given, the file with the weights in it, and who takes it."""
    form = random.choice(forms or FORMATS)
    taker = takers(world).taker(form)
    if form == "adapter":
        given = copy_linked(taker.pristine, folder / "adapter")
        return given, given / _WEIGHTS, taker
    file = put(folder / "lora.safetensors", taker.pristine.read_bytes())
    return file, file, taker


def _damaged(fault: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        given, file, taker = _given(world, random, folder)
        put(file, NO_FILES.get(fault) if fault in NO_FILES else cut(file.read_bytes(), random))
        return Mutant(given, Refused(WEIGHTS_MISSING, f"LoRA.*{file.name}"), taker)

    return mutate


def _misfit(change: Callable[[Weights, Random], Weights], *forms: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        given, file, taker = _given(world, random, folder, *forms)
        put(file, save(change(load_file(file), random)))
        return Mutant(given, Refused(UNFIT, f"{file.name} does not fit"), taker)

    return mutate


def _one(weights: Weights, random: Random) -> str:
    return random.choice([name for name in sorted(weights) if not name.endswith(".alpha")])


def _without(weights: Weights, random: Random) -> Weights:
    gone = _one(weights, random)
    return {name: tensor for name, tensor in weights.items() if name != gone}


def _renamed(weights: Weights, random: Random) -> Weights:
    """A layer that the model does not have."""
    old = _one(weights, random)
    layer = old.split(".lora_")[0]
    new = layer.replace("blocks.1", "blocks.7").replace("blocks_1", "blocks_7").replace("blocks.0", "blocks.9")
    return {name.replace(layer, new): tensor for name, tensor in weights.items()}


def _reshaped(weights: Weights, random: Random) -> Weights:
    """Wider than the layer that it is added to."""
    name = _one(weights, random)
    axis = 1 if (".lora_A" in name or ".lora_down" in name) else 0
    return weights | {name: weights[name].repeat_interleave(2, axis)}


def _not_finite(weights: Weights, random: Random) -> Weights:
    name = _one(weights, random)
    broken = weights[name].clone()
    broken.view(-1)[random.randrange(broken.numel())] = random.choice([torch.nan, torch.inf, -torch.inf])
    return weights | {name: broken}


def _strange(weights: Weights, random: Random) -> Weights:
    names = ["unet.conv_in.weight", "lora_unet_mid.lokr_w1", "lora_unet_mid.hada_w1_a", "unet.mid.dora_scale"]
    return weights | {random.choice(names): torch.ones(3, 3)}


def _settings_broken(fault: str) -> Mutate:
    def mutate(world: ModelWorld, random: Random, folder: Path) -> Mutant:
        given, file, taker = _given(world, random, folder, "adapter")
        settings = file.with_name(_SETTINGS)
        put(settings, break_json(settings.read_text(), fault, random))
        return Mutant(given, Refused(WEIGHTS_MISSING, "adapter_config.json"), taker)

    return mutate


_NOT_NUMBERS = ("four", None, [4], {}, True, -1, 0)


def _settings_wrong(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    given, file, taker = _given(world, random, folder, "adapter")
    changes: list[tuple[str, Any, int]] = [
        ("peft_type", random.choice(["IA3", "LOHA", None, 3]), UNFIT),
        ("bias", random.choice(["all", "lora_only"]), UNFIT),
        ("use_dora", True, UNFIT),
        ("init_lora_weights", random.choice(["pissa", "olora"]), UNFIT),
        ("modules_to_save", ["conv_in"], UNFIT),
        ("r", 7, UNFIT),
        ("r", random.choice(_NOT_NUMBERS), WEIGHTS_MISSING),
        ("lora_alpha", random.choice(_NOT_NUMBERS), WEIGHTS_MISSING),
        ("rank_pattern", random.choice([[2], "to_k", {"to_k": "two"}, {"(": 2}]), WEIGHTS_MISSING),
        ("alpha_pattern", random.choice([[2], "to_k", {"to_k": None}, {"[": 2}]), WEIGHTS_MISSING),
    ]
    name, value, code = random.choice(changes)
    settings = file.with_name(_SETTINGS)
    put_json(settings, read_document(settings) | {name: value})
    names = f"adapter_config.json .*({name}|says 7)"
    return Mutant(given, Refused(code, names), taker)


def _settings_lost(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    given, file, taker = _given(world, random, folder, "adapter")
    file.with_name(_SETTINGS).unlink()
    return Mutant(random.choice([given, file]), Refused(UNFIT, "adapter_config.json"), taker)


def _settings_respelt(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    given, file, taker = _given(world, random, folder, "adapter")
    settings = file.with_name(_SETTINGS)
    more = {"peft_version": "9.9", "inference_mode": random.random() < 0.5, "base_model_name_or_path": "/data/x"}
    put(settings, respell(read_document(settings) | more, random))
    put(given / "README.md", "# An adapter\n")
    return Mutant(random.choice([given, file]), Equal(), taker)


def _respelt(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """Tensors in another order, in half precision, with notes, in a file of another name."""
    given, file, taker = _given(world, random, folder)
    weights = load_file(file)
    kind = random.choice([torch.float32, torch.float16])
    changed = {name: weights[name].to(kind) for name in random.sample(list(weights), len(weights))}
    # of networks alone: a file in diffusers' own format has settings there
    notes = random.choice([None, {"ss_network_module": "networks.lora"}, {"modelspec.title": "tiny"}, {"format": "pt"}])
    put(file, save(changed, metadata=notes))
    if given == file:
        given = file.rename(folder / random.choice(["My LoRA (v2).safetensors", "a.b.c.safetensors", "ü.safetensors"]))
    return Mutant(given, Equal(), taker)


def _other_names(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    """As older versions of diffusers, peft and other trainers call the two factors."""
    given, file, taker = _given(world, random, folder, "diffusers", "flux")
    ends = random.choice([("lora_down", "lora_up"), ("lora_A.default", "lora_B.default")])
    weights = load_file(file)
    named = {
        name.replace("lora_A", ends[0]).replace("lora_B", ends[1]): tensor for name, tensor in weights.items()
    }  # fmt: skip
    put(file, save(named))
    return Mutant(given, Equal(), taker)


def _alpha(world: ModelWorld, random: Random, folder: Path) -> Mutant:
    given, file, taker = _given(world, random, folder, "kohya")
    weights = load_file(file)
    name = random.choice([each for each in sorted(weights) if each.endswith(".alpha")])
    is_one = random.random() < 0.5
    shape = random.choice([(1,), (1, 1)]) if is_one else random.choice([(2,), (2, 2), (0,)])
    put(file, save(weights | {name: torch.full(shape, 1.5)}))
    return Mutant(given, Equal() if is_one else Refused(UNFIT, r"\.alpha"), taker)


LORAS: dict[str, Mutate] = {
    **{f"LoRA: {fault}": _damaged(fault) for fault in ("truncated", *NO_FILES)},
    "LoRA: tensor removed": _misfit(_without),
    "LoRA: layer renamed": _misfit(_renamed),
    "LoRA: tensor reshaped": _misfit(_reshaped),
    "LoRA: not finite": _misfit(_not_finite),
    "LoRA: no LoRA besides": _misfit(_strange, "diffusers", "kohya"),
    "LoRA: no tensors": _misfit(lambda weights, random: {}),
    "LoRA: in another spelling": _respelt,
    "LoRA: factors by other names": _other_names,
    "LoRA: alphas": _alpha,
    **{f"adapter_config.json: {fault}": _settings_broken(fault) for fault in JSON_FAULTS},
    "adapter_config.json: wrong": _settings_wrong,
    "adapter_config.json: lost": _settings_lost,
    "adapter_config.json: in another spelling": _settings_respelt,
}
