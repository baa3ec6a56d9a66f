"""People as a classifier: labels of stored images, from a table."""

import os
from collections import Counter
from collections.abc import Mapping, Sequence
from pathlib import Path

import pandas as pd

from popalign_core.attributes.classifier_interface import FaceReading, Images, abstain, unreadable
from popalign_core.config.review import CANNOT_TELL
from popalign_core.documents import other_separator
from popalign_core.errors import InputError, MissingWeightsError

UNLABELLED = "unlabelled"
"""Drop reason: the image has no labels."""

# What spreadsheets and pandas write for ids of digits alone, or of digits around an `e`.
_SPREADSHEET_NUMBER = r"\d+[.,]\d+|\d(?:[.,]\d+)?[eE][+-]\d+|inf"

LABEL_COLUMNS = ("image_id", "axis", "class")
Labels = Mapping[str, Mapping[str, Counter[str]]]
"""Image -> axis -> class -> number of labels."""


class PeopleClassifier:
    """Answers with people's labels; attributes as those of `AttributeClassifier`.

    A class's probability is its share of the labels. Unsure are a tie, an axis without a label, and one on which most
    labels are `cannot tell`.
    """

    def __init__(self, name: str, version: str, axes: Mapping[str, tuple[str, ...]], labels: pd.DataFrame) -> None:
        """Take the labels, one row per rater, image and axis, as `read_labels` gives them.

        Raises:
            InputError: When a label is none of its axis's classes, or an axis has no label.
        """
        self.name, self.version, self.axes = name, version, dict(axes)
        unknown = [one for one in labels[["axis", "class"]].drop_duplicates().itertuples(index=False, name=None)
                   if one[0] in axes and one[1] not in (*axes[one[0]], CANNOT_TELL)]  # fmt: skip
        if unknown:
            raise InputError(f"classifier {name}: the labels {unknown} are not among the classes {dict(axes)}")
        labelled = sorted(labels["axis"].unique())
        if lacking := sorted(set(axes) - set(labelled)):
            raise InputError(f"classifier {name}: the axis {lacking[0]!r} has no label; the labels are of {labelled}")
        self._labels: dict[str, dict[str, Counter[str]]] = {}
        for image_id, axis, label in labels[list(LABEL_COLUMNS)].itertuples(index=False):
            self._labels.setdefault(image_id, {}).setdefault(axis, Counter())[label] += 1

    def read(self, images: Images, image_ids: Sequence[str] = ()) -> list[FaceReading]:
        """One reading an image, by its id; the images are not looked at.

        Raises:
            InputError: When there are no ids: these are no stored images.
        """
        if len(image_ids) != len(images):
            raise InputError(
                f"classifier {self.name} knows stored images by their ids, but {len(images)} came with "
                f"{len(image_ids)} ids; a probe while training needs a classifier that looks at images"
            )
        return [self._read(self._labels.get(image_id)) for image_id in image_ids]

    def _read(self, labels: Mapping[str, Counter[str]] | None) -> FaceReading:
        if labels is None:
            return unreadable(UNLABELLED)
        probabilities = {axis: _shares(labels.get(axis, Counter()), classes) for axis, classes in self.axes.items()}
        return FaceReading(1, None, 1.0, probabilities)


def read_labels(path: Path) -> pd.DataFrame:
    """A CSV or Parquet file with `image_id`, `axis` and `class`; other columns are left alone.

    All three are text as it stands there: `NA` and `None` are classes like others.

    Raises:
        MissingWeightsError: When there is no such file.
        InputError: When it cannot be read, lacks a column or has it twice, or has an empty cell or no row.
    """
    if not os.path.isfile(path):
        raise MissingWeightsError(f"there are no labels at {path}; put a CSV or Parquet file there")
    try:
        table = _read_parquet(path) if path.suffix.lower() == ".parquet" else _read_csv(path)
    except Exception as error:  # what pandas and pyarrow raise has no common root
        reason = str(error).partition("\n")[0]
        raise InputError(f"{path} cannot be read ({reason}); give UTF-8 CSV with commas, or Parquet") from error
    names = list(table.columns)
    missing = [name for name in LABEL_COLUMNS if name not in names]
    if missing:
        raise InputError(f"{path} lacks the columns {missing}, it has {names}")
    repeated = [name for name in LABEL_COLUMNS if names.count(name) > 1]
    if repeated:
        raise InputError(f"{path} has the columns {repeated} more than once, it has {names}; keep one of each")
    labels = table[list(LABEL_COLUMNS)]
    if labels.isna().to_numpy().any() or not len(labels):
        raise InputError(f"{path} has {len(labels)} rows, {int(labels.isna().any(axis=1).sum())} with an empty cell")
    labels = labels.astype(str)
    if len(numbers := labels.loc[labels["image_id"].str.fullmatch(_SPREADSHEET_NUMBER), "image_id"]):
        raise InputError(
            f"{path} has {len(numbers)} image_id(s) like {numbers.iloc[0]!r}: a spreadsheet took ids for numbers and "
            f"lost their digits; export the labels again, and open them there with image_id as text"
        )
    return labels


def _read_csv(path: Path) -> pd.DataFrame:
    """Every cell as text. The first line is read as a row: as a header, pandas would rename what is there twice, and
    take the first column for an index where lines are longer.
    """
    with path.open(encoding="utf-8-sig") as file:
        if (found := other_separator(file.readline(), ",", LABEL_COLUMNS)) is not None:
            raise ValueError(f"it has {found} between its columns, not commas")
    rows = pd.read_csv(path, dtype=str, header=None, keep_default_na=False, na_values=[""], encoding="utf-8-sig")
    return rows.iloc[1:].set_axis(rows.iloc[0], axis=1)


def _read_parquet(path: Path) -> pd.DataFrame:
    """Columns as they are, an index among them; whole numbers stay whole beside empty cells."""
    return pd.read_parquet(
        path,
        engine="pyarrow",
        dtype_backend="numpy_nullable",
        to_pandas_kwargs={"ignore_metadata": True},
        page_checksum_verification=True,
    )


def _shares(labels: Counter[str], classes: Sequence[str]) -> dict[str, float]:
    most = labels.most_common(2)
    if not most or most[0][0] == CANNOT_TELL or (len(most) == 2 and most[0][1] == most[1][1]):
        return abstain(classes)
    return {name: labels[name] / labels.total() for name in classes}
