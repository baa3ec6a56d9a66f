"""Stable ids: hashes of content, never positions, paths or times."""

import hashlib
import json

_ID_LENGTH = 16
_SEED_RANGE = 2**63


def content_id(*parts: object) -> str:
    """Id of a record: the first 16 hex digits of the SHA-256 of its parts' canonical JSON.

    Args:
        parts: What makes the record what it is: strings, numbers, booleans, None, and lists, tuples and
            string-keyed dicts of those. The order of dict keys does not matter, that of the parts does.

    Returns:
        16 lowercase hex digits.

    Raises:
        TypeError: When a part has no JSON form; its `repr` might change between runs.
        ValueError: When a number is not finite; JSON has no spelling for it.
    """
    return _digest(parts).hexdigest()[:_ID_LENGTH]


def image_seed(seed: int, prompt_id: str, index: int) -> int:
    """Seed of one image, so that its noise depends on no batch size, worker count or resume point.

    The model is left out on purpose: the base and the aligned model draw the same noise for the same prompt.

    Args:
        seed: Seed of the stage.
        prompt_id: Id of the prompt.
        index: Number of the image among those of its prompt.

    Returns:
        An integer in [0, 2**63), which fits both `torch.Generator` and an int64 column.
    """
    digest = _digest(("image-seed", seed, prompt_id, index)).digest()
    return int.from_bytes(digest[:8], "big") % _SEED_RANGE


def _digest(parts: tuple[object, ...]) -> "hashlib._Hash":
    canonical = json.dumps(parts, sort_keys=True, separators=(",", ":"), ensure_ascii=False, allow_nan=False)
    return hashlib.sha256(canonical.encode())
