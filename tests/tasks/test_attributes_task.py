"""Readings of every person's image, drops counted, generic images left out."""

import pandas as pd
import pytest

from popalign_core.config import Axis, PipelineConfig, RuntimeConfig
from popalign_core.errors import InputError
from storage.store import ArtifactRef
from tasks.attributes import count_drops, read_attributes
from tasks.identities import add_identities
from tasks.prompts import write_prompts
from tasks.sample import sample_images
from tasks.stage import open_store


def sampled(config: PipelineConfig, runtime: RuntimeConfig) -> tuple[ArtifactRef, ArtifactRef]:
    prompts = add_identities(write_prompts(config=config, runtime=runtime), config=config, runtime=runtime)
    return prompts, sample_images(prompts, purpose="evaluation", config=config, runtime=runtime)


def test_every_image_of_a_person_is_read_once(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    # shards of 4: the fourth holds generic images only, and so no row of attributes
    tiny_runtime = tiny_runtime.model_copy(update={"shard_size": 4})
    prompts, sample = sampled(tiny_config, tiny_runtime)
    ref = read_attributes(prompts, sample, config=tiny_config, runtime=tiny_runtime)
    store = open_store(tiny_runtime)
    attributes, drops = store.read_table(ref, "attributes"), store.read_table(ref, "drops")
    kinds = store.read_table(prompts, "prompts").set_index("prompt_id")["kind"]
    images = store.read_table(sample, "images").set_index("image_id")
    assert attributes["image_id"].is_unique
    assert kinds.loc[images.loc[attributes["image_id"], "prompt_id"]].value_counts().to_dict() == {
        "neutral": 12,
        "specific": 12,
    }
    assert set(attributes["classifier"]) == {"pixel-sum@1"}
    assert drops["n"].sum() == attributes["drop_reason"].notna().sum()


def test_an_image_counts_once_for_a_reason() -> None:
    table = pd.DataFrame(
        {
            "image_id": ["a", "a", "b", "b", "c", "c"],
            "axis": ["gender", "race"] * 3,
            "drop_reason": ["no_face", "no_face", None, "unsure", None, None],
        }
    )
    assert count_drops(table).values.tolist() == [["attributes", "no_face", 1], ["attributes", "unsure", 1]]


def test_a_class_the_classifier_lacks_is_refused(tiny_config: PipelineConfig, tiny_runtime: RuntimeConfig) -> None:
    axis = Axis(name="gender", classes=("male", "female", "non-binary"))
    config = tiny_config.model_copy(update={"axes": (axis,)})
    prompts, sample = sampled(config, tiny_runtime)
    with pytest.raises(InputError, match=r"\[attributes/attributes-v1-.*non-binary"):
        read_attributes(prompts, sample, config=config, runtime=tiny_runtime)
