"""Reading weights, configurations and vocabularies whole or not at all: every loader goes through here.

The libraries below fill what a file lacks with random numbers, and make a tokenizer of nothing, without an error. Here
what they report is checked, and what is broken ends in a `DamagedWeightsError` that names the part and the file.
"""

import json
import re
from collections.abc import Collection
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from popalign_core.documents import read_json
from popalign_core.errors import DamagedWeightsError
from popalign_core.models.config_fit import misfit

# What does not count at inference: counters, numbers 0, 1, 2, ..., what masks patches in pre-training.
NEEDLESS = re.compile(r"(^|\.)(num_batches_tracked|position_ids|mask_token|relative_position_index)$")
# What a network may leave in its file unread, though its configuration is right: FLUX.1-schnell merged with -dev, EMA.
_LEFT_OVER = re.compile(r"guidance_embedder|(^|[._])ema([._]|$)|num_updates")
_LAYER_COUNTS = ("num_hidden_layers", "num_layers")
_VARIANTS = ("fp16", "bf16", "fp32")
_LEAST_SHARE = 0.9
"""Embeddings are padded to round numbers: T5's 32,100 words to 32,128. Less than this share is a vocabulary cut off."""
_UNREACHABLE_SHARE = 0.01
_LONGEST_REASON = 300  # the libraries list every tensor
UNREADABLE = (OSError, ValueError, RuntimeError, TypeError, LookupError, AttributeError, ImportError, ArithmeticError)
"""What the libraries raise for files that they did not write; memory and interrupts are not among them."""


@dataclass(frozen=True)
class PartFolder:
    """A folder with weights or a vocabulary, in the words of messages.

    Attributes:
        what: Such as "the text_encoder of the pipeline".
        path: Where it lies.
        fix: How to get it again.
    """

    what: str
    path: Path
    fix: str

    def refusal(self, problem: object) -> DamagedWeightsError:
        """The error that says what is wrong with it."""
        reason = " ".join(str(problem).split())
        if not reason or isinstance(problem, LookupError):
            reason = f"{type(problem).__name__} {reason}"
        if len(reason) > _LONGEST_REASON:
            reason = f"{reason[:_LONGEST_REASON]}..."
        return DamagedWeightsError(f"cannot load {self.what} in {self.path}: {reason}; {self.fix}")

    def read_settings(self, name: str = "config.json") -> dict[str, Any]:
        """A JSON file with settings.

        Raises:
            DamagedWeightsError: When it is not there, no JSON, or without a single setting.
        """
        file = self.path / name
        if not file.is_file():
            raise self.refusal(f"it has no file named {name}")
        try:
            settings: Any = read_json(file.read_bytes())
        except (OSError, ValueError) as error:
            raise self.refusal(f"{name} is not JSON ({error})") from error
        if not isinstance(settings, dict) or not [key for key in settings if not key.startswith("_")]:
            raise self.refusal(f"{name} has no settings")
        return settings

    @cached_property
    def n_layers_given(self) -> bool:
        """Whether its configuration says how many layers there are."""
        text = (self.path / "config.json").read_text(encoding="utf-8")
        return any(f'"{name}"' in text for name in _LAYER_COUNTS)


def load_module(kind: Any, part: PartFolder, dtype: Any) -> Any:
    """A network of diffusers or transformers with all its weights, none of them random.

    Args:
        kind: A class with `from_pretrained`.
        part: Its folder, with config.json and safetensors; of these a half-precision variant will do.
        dtype: torch's.

    Raises:
        DamagedWeightsError: When a file or a tensor is missing, or does not fit.
    """
    from huggingface_hub.errors import StrictDataclassError
    from safetensors import SafetensorError

    settings, is_diffusers = part.read_settings(), kind.__module__.startswith("diffusers.models.")
    options = {"variant": variant} if (variant := _variant(part, is_diffusers)) else {}
    try:
        problem = misfit(kind, part.path, settings, weight_files(part.path, _stem(is_diffusers)))
    except (OSError, SafetensorError) as error:
        raise part.refusal(error) from error
    if problem is not None:
        raise part.refusal(problem)
    try:
        module, report = kind.from_pretrained(
            str(part.path),
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            ignore_mismatched_sizes=True,  # refused below, by name
            **options,
        )
    except (*UNREADABLE, StrictDataclassError, SafetensorError) as error:
        raise part.refusal(error) from error
    if wrong := sorted(report["mismatched_keys"]):
        name, found, expected = wrong[0]
        raise part.refusal(f"{name} has shape {list(found)}, expected shape {list(expected)}")
    if lacking := sorted(name for name in report["missing_keys"] if not NEEDLESS.search(name)):
        raise part.refusal(f"{_file(part, is_diffusers)} lacks {len(lacking)} weights, such as {lacking[0]}")
    if unread := _unread(report["unexpected_keys"], module, part, is_diffusers):
        raise part.refusal(f"config.json has no place for {len(unread)} weights, such as {unread[0]}")
    return module


def weight_files(folder: Path, stem: str = "model") -> list[Path]:
    """The files with weights that `load_module` reads: one, or an index and its shards; none where there are none.

    Of a damaged index nothing but the index is named; `load_module` refuses it.
    """
    names = [path.name for path in folder.iterdir() if path.is_file()] if folder.is_dir() else []
    return [folder / name for name in chosen_weights(names, stem)]


def chosen_weights(names: Collection[str], stem: str = "model") -> list[str]:
    """Of the files of a folder, those with the weights that are read: the plain ones, else the first half-precision
    variant. Which they are must not depend on `model.dtype`: a hub id is hashed by its revision alone.
    """
    for variant in (None, *_VARIANTS):
        middle = "" if variant is None else f".{variant}"
        whole, index = f"{stem}{middle}.safetensors", f"{stem}.safetensors.index{middle}.json"
        if whole in names:
            return [whole]
        if index in names:
            shard = re.compile(rf"{re.escape(stem + middle)}-\d+-of-\d+\.safetensors")
            return [index, *sorted(name for name in names if shard.fullmatch(name))]
    return []


def check_end(encoder: Any, tokenizer: Any, part: PartFolder) -> None:
    """A CLIP pools at the end of a text; where that is not the tokenizer's, at its beginning, without a word.

    Args:
        encoder: Of the texts, of any kind. Where its configuration has null as the end, it takes the tokenizer's.
        tokenizer: That makes its texts.
        part: Of the text encoder.

    Raises:
        DamagedWeightsError: When they differ. 2 is what older configurations say of the last of all words.
    """
    if not str(getattr(encoder.config, "model_type", "")).startswith("clip"):
        return
    end, expected = encoder.config.eos_token_id, tokenizer.eos_token_id
    if end is None:
        for module in encoder.modules():
            if hasattr(module, "eos_token_id"):
                module.eos_token_id = expected
    elif end not in (2, expected):
        raise part.refusal(f"config.json has eos_token_id {end!r}, but its tokenizer has {expected!r}")


def load_tokenizer(kind: Any, part: PartFolder, n_embeddings: int | None = None, max_length: int | None = None) -> Any:
    """A tokenizer that knows its words.

    Args:
        kind: A class with `from_pretrained`, such as `AutoTokenizer`.
        part: Its folder.
        n_embeddings: How many words its text encoder has embeddings for, if that is to be checked.
        max_length: How many tokens a text encoder reads that is given as many as the tokenizer's own number.

    Raises:
        DamagedWeightsError: When a file is missing, or the vocabulary is not the text encoder's.
    """
    if not part.path.is_dir():
        raise part.refusal("there is no such folder")
    if hasattr(kind, "vocab_files_names"):
        _check_files(kind, part)
    # a tokenizer keeps the option and saves it, which would change the files of trained pipelines
    options = {"local_files_only": True} if kind.__name__.startswith("Auto") else {}
    try:
        tokenizer = kind.from_pretrained(str(part.path), **options)
    except Exception as error:  # the tokenizers' own errors have no other root
        raise part.refusal(error) from error
    _check_files(type(tokenizer), part)
    if n_embeddings is not None:
        _check_vocabulary(tokenizer, part, n_embeddings)
    length = tokenizer.model_max_length
    # two of the tokens are no words, but where the text begins and ends
    is_number = isinstance(length, int) and length > 2
    if not is_number or (max_length is not None and length > max_length):
        raise part.refusal(
            f"tokenizer_config.json has model_max_length {length!r}; the text encoder reads {max_length}"
        )
    _check_merges(tokenizer, part)
    return tokenizer


def _check_files(kind: Any, part: PartFolder) -> None:
    names = kind.vocab_files_names
    whole = names.get("tokenizer_file", "tokenizer.json")
    lacking = [name for key, name in names.items() if key != "tokenizer_file" and not (part.path / name).is_file()]
    if lacking and not (part.path / whole).is_file():
        raise part.refusal(f"it has neither {whole} nor {' and '.join(lacking)}")


def _check_vocabulary(tokenizer: Any, part: PartFolder, n_embeddings: int) -> None:
    words = tokenizer.get_vocab()
    if len(words) < _LEAST_SHARE * n_embeddings:
        raise part.refusal(
            f"it knows {len(words)} words, but the text encoder {n_embeddings}: its vocabulary is incomplete"
        )
    added = getattr(tokenizer, "added_tokens_encoder", {})
    if far := [word for word, number in words.items() if number >= n_embeddings and word not in added]:
        raise part.refusal(f"its word {far[0]!r} has no embedding: the text encoder has {n_embeddings}")
    for name in ("bos_token", "eos_token", "pad_token"):
        number = getattr(tokenizer, f"{name}_id")
        if number is not None and number >= n_embeddings:
            raise part.refusal(f"its {name} has no embedding: the text encoder has {n_embeddings}")


def _check_merges(tokenizer: Any, part: PartFolder) -> None:
    """Of a byte-pair encoding whose merges are lost, words fall into letters."""
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None or type(backend.model).__name__ != "BPE":
        return
    model = json.loads(backend.to_str())["model"]
    suffix, added = model.get("end_of_word_suffix") or "", getattr(tokenizer, "added_tokens_encoder", {})
    pairs = (pair if isinstance(pair, list) else pair.split(" ") for pair in model["merges"])
    reached = {"".join(pair) for pair in pairs}
    long = [word for word in model["vocab"] if len(word.removesuffix(suffix)) > 1 and word not in added]
    lost = [word for word in long if word not in reached and not re.fullmatch("<.*>", word)]
    if len(lost) > _UNREACHABLE_SHARE * len(long):
        raise part.refusal(f"no merges make {len(lost)} of its words, such as {lost[0]!r}: its merges are incomplete")


def _unread(names: Any, module: Any, part: PartFolder, is_diffusers: bool) -> list[str]:
    """Weights in the file that show that the configuration is another's.

    A network of diffusers reads its whole file. One of transformers may be part of a larger one, which lies in the
    file; but layers beyond its number are left out in earnest only where the configuration gives that number.
    """
    unread = sorted(name for name in names if not NEEDLESS.search(name) and not _LEFT_OVER.search(name))
    if is_diffusers:
        return unread
    if part.n_layers_given:
        return []
    stems = {match[1] for name in module.state_dict() if (match := re.match(r"(.*\.)\d+\.", name))}
    return [name for name in unread if (match := re.match(r"(.*\.)\d+\.", name)) and match[1] in stems]


def _stem(is_diffusers: bool) -> str:
    return "diffusion_pytorch_model" if is_diffusers else "model"


def _file(part: PartFolder, is_diffusers: bool) -> str:
    found = sorted(path.name for path in part.path.glob(f"{_stem(is_diffusers)}*.safetensors"))
    return found[0] if len(found) == 1 else f"{_stem(is_diffusers)}*.safetensors"


def _variant(part: PartFolder, is_diffusers: bool) -> str | None:
    """The half-precision variant, where the plain weights are not there; None where they are.

    Raises:
        DamagedWeightsError: When there is neither.
    """
    stem, names = _stem(is_diffusers), {path.name for path in part.path.iterdir()}
    if found := weight_files(part.path, stem):
        return next((variant for variant in _VARIANTS if f".{variant}." in found[0].name), None)
    problem = f"it has no file named {stem}.safetensors"
    if pickled := sorted(name for name in names if name.endswith((".bin", ".pt", ".ckpt", ".pth", ".msgpack", ".h5"))):
        problem += (
            f", only {pickled[0]}, which is not read here: save it again with "
            "`save_pretrained(..., safe_serialization=True)`"
        )
    elif others := sorted(name for name in names if name.endswith(".safetensors")):
        problem += f", only {others[0]}"
    raise part.refusal(problem)
