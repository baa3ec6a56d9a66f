"""Members of set preferences made elsewhere: which of them count."""

from collections import Counter

import pandas as pd

from popalign_core.models.pixels import MISSING

ROLES = ("preferred", "dispreferred")
MIXED, ONE_SIDED, SLOT_TWICE = "captions of a set differ", "set without the other role", "slot of a set twice"


def member_fault(set_id: str | None, role: str | None, caption: str | None, image: bytes | None) -> str | None:
    """Why a member cannot be used, as far as can be told without its set and without decoding its image.

    Args:
        set_id: Of the pair of sets it belongs to.
        role: preferred or dispreferred, if it is right.
        caption: What both sets stand under.
        image: Encoded.

    Returns:
        None when it is fine, else one of `no set`, `unknown role`, `empty caption`, `missing image`.
    """
    if not set_id:
        return "no set"
    if role not in ROLES:
        return "unknown role"
    if not (caption or "").strip():
        return "empty caption"
    return None if image else MISSING


def drop_lone_members(members: pd.DataFrame, drops: Counter[str]) -> pd.DataFrame:
    """The members whose sets can be trained on: one caption, both roles, and each slot once.

    Args:
        members: `set_id`, `role`, `slot` and `caption` at least.
        drops: Counts the others, by reason.
    """

    def keep(table: pd.DataFrame, bad: "pd.Series[bool]", reason: str) -> pd.DataFrame:
        drops.update([reason] * int(bad.sum()))
        return table[~bad.to_numpy(dtype=bool)]

    members = keep(members, members.groupby("set_id")["caption"].transform("nunique") > 1, MIXED)
    members = keep(members, members.duplicated(["set_id", "role", "slot"]), SLOT_TWICE)
    members = keep(members, members.groupby("set_id")["role"].transform("nunique") < len(ROLES), ONE_SIDED)
    return members.reset_index(drop=True)
