"""Content-addressed keys: the same stage, version, configuration and inputs have the same key on every machine."""

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from popalign_core.errors import StoreError

PAYLOAD_FIELDS = frozenset({"stage", "version", "config", "inputs"})
"""What a key is a hash of; `revision` comes in only when it is above 0."""

_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]*")


@dataclass(frozen=True, order=True)
class ArtifactRef:
    """Where an artifact is, or will be: all that crosses a task border.

    Attributes:
        stage: Name of the stage that makes it.
        key: As `Store.key` gives it.
    """

    stage: str
    key: str

    def __post_init__(self) -> None:
        check_name("stage", self.stage)
        check_name("key", self.key)

    def __str__(self) -> str:
        return f"{self.stage}/{self.key}"


def check_name(what: str, name: str) -> None:
    """Refuse a name that cannot be one folder's.

    Raises:
        StoreError: When it is empty, hidden, or has a character other than letters, digits, dot, dash, underscore.
    """
    if not _NAME.fullmatch(name):
        raise StoreError(f"{what} {name!r} cannot name a folder; use letters, digits, '.', '-' and '_'")


def is_key(stage: str, name: str) -> bool:
    """Whether a folder below a stage's is named like one of its keys."""
    return re.fullmatch(rf"{re.escape(stage)}-v.+-[0-9a-f]{{32}}", name) is not None


def key_of(payload: Mapping[str, Any]) -> str:
    """The key of a payload: `STAGE-vVERSION-` and 32 hex digits of the sha256 of its canonical JSON.

    Raises:
        StoreError: When the payload holds something that is not JSON.
    """
    digest = hashlib.sha256(canonical_json(payload).encode()).hexdigest()
    return f"{payload['stage']}-v{payload['version']}-{digest[:32]}"


def key_payload(
    stage: str, version: str, config: Mapping[str, Any], inputs: Mapping[str, str], revision: int = 0
) -> dict[str, Any]:
    """What the key of an artifact is a hash of; revision 0 is left out."""
    payload: dict[str, Any] = {"stage": stage, "version": version, "config": config, "inputs": inputs}
    return payload | ({"revision": revision} if revision else {})


def canonical_json(value: object) -> str:
    """JSON with sorted keys, no spaces and ASCII only: one text for one value.

    Raises:
        StoreError: When the value holds something that is not JSON.
    """
    return json.dumps(plain(value), sort_keys=True, separators=(",", ":"), allow_nan=False)


def plain(value: object, where: str = "") -> Any:
    """The value as dicts, lists and scalars.

    Args:
        value: Of a payload.
        where: Dotted path to it, for the message.

    Raises:
        StoreError: When something in it is not JSON, a number is not finite, or a mapping's key is no string.
    """
    if value is None or isinstance(value, str | bool | int):
        return value
    if isinstance(value, float) and math.isfinite(value):
        return value
    if isinstance(value, Mapping):
        wrong = [name for name in value if not isinstance(name, str)]
        if wrong:
            raise StoreError(f"payload{where} has the key {wrong[0]!r}, which is not a string; write it as one")
        return {str(name): plain(item, f"{where}.{name}") for name, item in value.items()}
    if isinstance(value, list | tuple):
        return [plain(item, f"{where}.{index}") for index, item in enumerate(value)]
    raise StoreError(
        f"payload{where} is {value!r}, a {type(value).__name__}; keys and manifests hold JSON only: "
        "finite numbers, strings, lists, mappings"
    )
