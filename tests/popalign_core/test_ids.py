"""Ids and seeds: content decides, nothing else. The literals pin them; changing one orphans every stored artifact."""

import hashlib
import subprocess
import sys

import pytest

from popalign_core.ids import content_id, image_seed


def test_the_id_is_the_hash_of_canonical_json():
    canonical = '["prompt","a photo of a doctor","neutral","train"]'
    expected = hashlib.sha256(canonical.encode()).hexdigest()[:16]
    assert content_id("prompt", "a photo of a doctor", "neutral", "train") == expected == "1c7086ee73d8da6c"


def test_order_of_parts_matters_and_order_of_keys_does_not():
    assert content_id("a", "b") != content_id("b", "a")
    assert content_id({"x": 1, "y": 2}) == content_id({"y": 2, "x": 1})


def test_parts_do_not_run_together():
    assert content_id("ab", "c") != content_id("a", "bc")


def test_non_ascii_text_has_one_id():
    assert content_id("café") == hashlib.sha256('["café"]'.encode()).hexdigest()[:16]


def test_what_has_no_json_form_is_refused():
    with pytest.raises(TypeError, match="not JSON serializable"):
        content_id(object())
    with pytest.raises(ValueError, match="not JSON compliant"):
        content_id(float("nan"))


def test_the_image_seed_is_pinned_and_fits_int64():
    assert image_seed(0, "1c7086ee73d8da6c", 3) == 1651845997483988764
    seeds = [image_seed(seed, f"p{prompt}", index) for seed in range(3) for prompt in range(5) for index in range(40)]
    assert len(set(seeds)) == len(seeds)
    assert min(seeds) >= 0
    assert max(seeds) < 2**63


def test_ids_do_not_depend_on_the_process():
    code = "from popalign_core.ids import content_id; print(content_id({'b': 1, 'a': None}))"
    runs = {
        subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, check=True, env={"PYTHONHASHSEED": s}
        ).stdout.strip()
        for s in ("1", "2")
    }
    assert runs == {content_id({"a": None, "b": 1})}
