"""What alignment must leave as it is: pictures under captions that the preferences do not speak of."""

import pandas as pd


def retained_images(prompts: pd.DataFrame, images: pd.DataFrame, preferences: pd.DataFrame) -> pd.DataFrame:
    """Images whose own caption training may hold at the reference (`training.retention`).

    Args:
        prompts: A `prompts` table.
        images: `image_id` and `prompt_id` of the images drawn for the preferences.
        preferences: A `preferences` table.

    Returns:
        A `retained` table in the order of the image ids: the preferred images under the captions that name their
        identity (`kind` specific), and all images of the generic training prompts (`kind` generic).
    """
    generic = prompts.loc[(prompts["kind"] == "generic") & (prompts["split"] == "train"), "prompt_id"]
    preferred = preferences.loc[preferences["role"] == "preferred", "image_id"]
    # as objects: pandas makes an Arrow scalar of each value that it looks for among Arrow strings
    is_preferred = images["image_id"].astype(object).isin(preferred.astype(object))
    chosen = images[images["prompt_id"].isin(generic) | is_preferred]
    kinds = prompts.set_index("prompt_id")["kind"]
    table = chosen[["image_id", "prompt_id"]].assign(kind=chosen["prompt_id"].map(kinds))
    return table.sort_values("image_id", kind="stable").reset_index(drop=True)
