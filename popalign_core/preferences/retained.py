"""What alignment must leave as it is: images under captions that the preferences do not speak of."""

from collections.abc import Iterable

import pandas as pd


def retained_images(prompts: pd.DataFrame, images: Iterable[pd.DataFrame], preferences: pd.DataFrame) -> pd.DataFrame:
    """Images whose own caption training may hold at the reference (`training.retention`).

    Args:
        prompts: A `prompts` table.
        images: `image_id` and `prompt_id` of the images sampled for the preferences, in pieces; no piece is kept.
        preferences: `image_id` and `role` of a `preferences` table.

    Returns:
        A `retained` table in the order of the image ids: the preferred images under the captions that name their
        identity (`kind` specific), and all images of the generic training prompts (`kind` generic).
    """
    # as objects: pandas makes an Arrow scalar of each value that it looks for among Arrow strings
    generic = prompts.loc[(prompts["kind"] == "generic") & (prompts["split"] == "train"), "prompt_id"]
    preferred = preferences.loc[preferences["role"] == "preferred", "image_id"].drop_duplicates()
    is_generic, is_preferred = (pd.Index(ids.astype(object)).get_indexer for ids in (generic, preferred))
    chosen = pd.concat(
        [
            piece.loc[
                (is_generic(piece["prompt_id"].astype(object)) >= 0)
                | (is_preferred(piece["image_id"].astype(object)) >= 0),
                ["image_id", "prompt_id"],
            ]
            for piece in images
        ]
    )
    kinds = prompts.set_index("prompt_id")["kind"]
    table: pd.DataFrame = chosen.assign(kind=chosen["prompt_id"].map(kinds))
    # people may leave neutral images in a preferred set: their caption is the very one that alignment changes
    table = table[table["kind"] != "neutral"]
    return table.sort_values("image_id", kind="stable").reset_index(drop=True)
