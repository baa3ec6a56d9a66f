"""Prompt lists in Parquet, as other programs write text."""

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from sibling_types import TEXTS

from popalign_core.config import PromptsConfig
from popalign_core.errors import InputError
from tasks.common.prompt_lists import PromptList, read_lists


def read(path) -> list[PromptList]:
    return read_lists(PromptsConfig(generic_lists=(str(path),)))["generic_lists"]


@pytest.mark.parametrize("make", TEXTS.values(), ids=TEXTS)
def test_text_of_every_type_is_the_same_list(tmp_path, make):
    pq.write_table(pa.table({"n": [1, 2, 3], "Prompt": make(["a red ball", None, "a box"])}), tmp_path / "list.parquet")
    assert read(tmp_path / "list.parquet")[0].texts == ("a red ball", "", "a box")


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (pa.table([["a"], ["b"]], names=["prompt", "prompt"]), "has 2 columns named 'prompt'; keep one"),
        (pa.table({"prompt": pa.nulls(2)}), "holds no prompts"),
        (pa.table({"prompt": pa.nulls(0, pa.string())}), "holds no prompts"),
        (pa.table({"prompt": [1]}), "column 'prompt' is of type int64; it should hold text"),
    ],
)
def test_lists_that_hold_no_prompts_are_refused(tmp_path, table, message):
    pq.write_table(table, tmp_path / "list.parquet")
    with pytest.raises(InputError, match=message):
        read(tmp_path / "list.parquet")
