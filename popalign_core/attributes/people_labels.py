"""People as a classifier: labels of stored images, from a table."""

from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from popalign_core.attributes.reader import FaceReading, Pictures, abstain, unreadable
from popalign_core.config.review import CANNOT_TELL
from popalign_core.errors import InputError, MissingWeightsError

UNLABELLED = "unlabelled"
"""Drop reason: nobody said anything about the image."""

LABEL_COLUMNS = ("image_id", "axis", "class")
Labels = Mapping[str, Mapping[str, Counter[str]]]
"""Image -> axis -> class -> how many people said so."""


class PeopleReader:
    """Reads what people said; attributes as those of `AttributeReader`.

    A class's probability is the share of the people who named it; those who could not tell named none. A tie, an axis
    that nobody labelled, and one that most could not tell are unsure.
    """

    def __init__(self, name: str, version: str, axes: Mapping[str, tuple[str, ...]], labels: pd.DataFrame) -> None:
        """Take the labels, a row a person's word on an image and axis, as `read_labels` gives them.

        Raises:
            InputError: When a label is none of its axis's classes.
        """
        self.name, self.version, self.axes = name, version, dict(axes)
        unknown = [one for one in labels[["axis", "class"]].drop_duplicates().itertuples(index=False, name=None)
                   if one[0] in axes and one[1] not in (*axes[one[0]], CANNOT_TELL)]  # fmt: skip
        if unknown:
            raise InputError(f"classifier {name}: the labels {unknown} are not among the classes {dict(axes)}")
        self._labels: dict[str, dict[str, Counter[str]]] = {}
        for image_id, axis, said in labels[list(LABEL_COLUMNS)].itertuples(index=False):
            self._labels.setdefault(image_id, {}).setdefault(axis, Counter())[said] += 1

    def read(self, pictures: Pictures, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading an image, by its id; the pictures are not looked at.

        Raises:
            InputError: When there are no ids: these are no stored images.
        """
        if len(image_ids) != len(pictures):
            raise InputError(
                f"classifier {self.name} knows stored images by their ids, but {len(pictures)} came with "
                f"{len(image_ids)} ids; a probe while training needs a classifier that looks at pictures"
            )
        return [self._read(self._labels.get(image_id)) for image_id in image_ids]

    def _read(self, said: Mapping[str, Counter[str]] | None) -> FaceReading:
        if said is None:
            return unreadable(UNLABELLED)
        probabilities = {axis: _shares(said.get(axis, Counter()), classes) for axis, classes in self.axes.items()}
        return FaceReading(1, None, 1.0, probabilities)


def read_labels(path: Path) -> pd.DataFrame:
    """A CSV or Parquet file with `image_id`, `axis` and `class`; other columns are left alone.

    Raises:
        MissingWeightsError: When there is no such file.
        InputError: When it cannot be read, lacks a column, or has an empty cell or no row.
    """
    if not path.is_file():
        raise MissingWeightsError(f"there are no labels at {path}; put a CSV or Parquet file there")
    try:
        table = pd.read_parquet(path) if path.suffix == ".parquet" else pd.read_csv(path, dtype=str)
    except (OSError, ValueError) as error:  # pandas' and pyarrow's errors are ValueErrors
        raise InputError(f"{path} cannot be read ({error}); give UTF-8 CSV or Parquet") from error
    missing = [name for name in LABEL_COLUMNS if name not in table.columns]
    if missing:
        raise InputError(f"{path} lacks the columns {missing}, it has {list(table.columns)}")
    labels = table[list(LABEL_COLUMNS)]
    if labels.isna().to_numpy().any() or not len(labels):
        raise InputError(f"{path} has {len(labels)} rows, {int(labels.isna().any(axis=1).sum())} with an empty cell")
    return labels.astype(str)


def _shares(said: Counter[str], classes: Sequence[str]) -> dict[str, float]:
    most = said.most_common(2)
    if not most or most[0][0] == CANNOT_TELL or (len(most) == 2 and most[0][1] == most[1][1]):
        return abstain(classes)
    return {name: said[name] / said.total() for name in classes}
