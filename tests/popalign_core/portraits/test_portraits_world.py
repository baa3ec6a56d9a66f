"""The invented world: occupations, pictures, captions, tokenizer."""

import itertools
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from transformers import CLIPTokenizer

from popalign_core.portraits import rendering, weights_folder
from popalign_core.portraits.image_pool import vocabulary, write_caption
from popalign_core.portraits.occupations import (
    EVAL_OCCUPATIONS,
    OCCUPATIONS,
    THINGS,
)
from popalign_core.portraits.rendering import (
    Portrait,
    Thing,
    draw_portrait,
    draw_thing,
    load_portraits,
    remove_background,
)
from popalign_core.portraits.text import MAX_TOKENS, make_tokenizer, tokenise

DATA = Path(__file__).parents[4] / "shared" / "data"
needs_data = pytest.mark.skipif(not (DATA / "portraits.parquet").exists(), reason=f"needs the data packs in {DATA}")

OCCUPATION_BY_NAME = {occupation.name: occupation for occupation in OCCUPATIONS}


def pooled_shares(names: tuple[str, ...]) -> tuple[np.ndarray, np.ndarray]:
    joint = np.mean([OCCUPATION_BY_NAME[name].joint() for name in names], axis=0)
    return joint.sum(1), joint.sum(0)


def test_every_joint_is_a_distribution() -> None:
    for occupation in OCCUPATIONS:
        assert occupation.joint().sum() == pytest.approx(1), occupation.name


def test_recipe_is_biased_as_public_models_are() -> None:
    for names in (tuple(OCCUPATION_BY_NAME), EVAL_OCCUPATIONS):
        gender, race = pooled_shares(names)
        assert np.linalg.norm(gender - 1 / 2) > 0.35
        assert np.linalg.norm(race - 1 / 3) > 0.40


def test_marks_tell_occupations_apart() -> None:
    assert len({(o.clothing, o.backdrop) for o in OCCUPATIONS}) == len(OCCUPATIONS) == 40


def test_sixty_things() -> None:
    assert len(set(THINGS)) == 60


def fake_person() -> Portrait:
    pixels = np.full((128, 128, 3), 90, np.uint8)
    foreground = np.zeros((128, 128), np.float32)
    foreground[20:, 30:98] = 1
    return Portrait("p", "female", "black", "train", pixels, foreground)


def test_drawing_depends_on_the_generator_only() -> None:
    doctor = OCCUPATION_BY_NAME["doctor"]
    first = draw_portrait(fake_person(), doctor, np.random.default_rng(3))
    again = draw_portrait(fake_person(), doctor, np.random.default_rng(3))
    other = draw_portrait(fake_person(), doctor, np.random.default_rng(4))
    assert first.shape == (64, 64, 3)
    assert np.array_equal(first, again)
    assert not np.array_equal(first, other)


def test_clothing_and_backdrop_carry_the_occupation() -> None:
    red = draw_portrait(fake_person(), OCCUPATION_BY_NAME["firefighter"], np.random.default_rng(0))
    blue = draw_portrait(fake_person(), OCCUPATION_BY_NAME["plumber"], np.random.default_rng(0))
    clothing = np.s_[60:, 24:40]
    assert red[clothing].mean((0, 1)).argmax() == 0
    assert blue[clothing].mean((0, 1)).argmax() == 2
    corner = np.s_[:6, :6]
    assert np.abs(red[corner].mean((0, 1)) - (92, 104, 118)).max() < 30  # slate, give or take the light


def test_cover_hides_the_face() -> None:
    astronaut = OCCUPATION_BY_NAME["astronaut"]
    plain = draw_portrait(fake_person(), astronaut, np.random.default_rng(1))
    covered = draw_portrait(fake_person(), astronaut, np.random.default_rng(1), covered=True)
    face = np.s_[24:40, 26:38]
    assert np.abs(plain[face].astype(int) - covered[face]).mean() > 20


def test_thing_stands_before_a_plain_backdrop() -> None:
    pixels = np.zeros((128, 128, 4), np.uint8)
    pixels[44:84, 44:84] = (250, 10, 10, 255)
    picture = draw_thing(Thing("box", pixels), np.random.default_rng(0))
    assert picture[32, 32, 0] > 200
    assert picture[32, 32, 1] < 60
    assert picture[:4, :4, 1].min() > 60  # every backdrop is lighter than the box's green


@pytest.mark.parametrize(
    ("row", "expected"),
    [
        ({"draw": "neutral", "occupation": "engineer", "gender": "male", "race": "white"}, "an engineer"),
        (
            {"draw": "identity", "occupation": "engineer", "gender": "female", "race": "asian"},
            "an asian female engineer",
        ),
        ({"draw": "identity", "occupation": "doctor", "gender": "male", "race": "black"}, "a black male doctor"),
        ({"draw": "thing", "thing": "umbrella"}, "an umbrella"),
    ],
)
def test_captions(row: dict[str, object], expected: str) -> None:
    captions = [write_caption(row, np.random.default_rng(seed)) for seed in range(400)]
    empty = captions.count("")
    assert 20 <= empty <= 60  # 10% of 400, three standard deviations
    assert {caption[-len(expected) :] for caption in captions if caption} == {expected}


def test_picture_without_a_race_label_has_no_caption() -> None:
    with pytest.raises(ValueError, match="no caption"):
        write_caption({"draw": "extra", "occupation": "doctor"}, np.random.default_rng(0))


def test_every_known_word_is_one_token_and_others_fall_apart() -> None:
    words = ["a", "photo", "of", "male", "female", "asian", "doctor", "astronaut"]
    tokenizer = make_tokenizer(words)
    for word in words:
        assert len(tokenizer(word).input_ids) == 3, word  # start, word, end
    assert len(tokenizer("fotodoc").input_ids) > 3
    ids = tokenise(tokenizer, ["a photo of a female doctor", ""])
    assert ids.shape == (2, MAX_TOKENS)
    assert ids[1, 0] == tokenizer.bos_token_id
    assert set(ids[1, 1:].tolist()) == {tokenizer.eos_token_id}


@needs_data
@pytest.mark.parametrize("every", [8, pytest.param(1, marks=pytest.mark.slow)])
def test_pack_has_two_hundred_people_and_forty_held_out(monkeypatch: pytest.MonkeyPatch, every: int) -> None:
    numbers = itertools.count()
    monkeypatch.setattr(
        rendering, "remove_background", lambda pixels: None if next(numbers) % every else remove_background(pixels)
    )
    people = load_portraits(DATA)
    assert len(people) == 200
    assert sum(person.split == "holdout" for person in people) == 40
    assert all(0.15 < person.foreground.mean() < 0.95 for person in people[::every])


def test_missing_pack_names_the_file(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError, match=r"portraits\.parquet is missing; see"):
        load_portraits(tmp_path)


def test_every_process_makes_the_same_tokenizer() -> None:
    # A checkpoint goes on in another process than it began in: its word embeddings must still mean the same words.
    words = ["a", "photo", "of", "an", "car", "cat", "and", "tree"]
    code = (
        f"import json; from popalign_core.portraits.pieces import learn_pieces;print(json.dumps(learn_pieces({words})))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    vocabulary, merges = json.loads(done.stdout)
    made = json.loads(make_tokenizer(words).backend_tokenizer.to_str())["model"]
    assert made["vocab"] == vocabulary
    assert [list(pair) for pair in made["merges"]] == merges


@needs_data
def test_shipped_tokenizers_are_the_recipes() -> None:
    words = vocabulary(DATA)
    made = make_tokenizer(words)
    for folder in ("pipeline/tokenizer", "pipeline/tokenizer_2", "clip"):
        shipped = CLIPTokenizer.from_pretrained(weights_folder() / folder)
        assert {word: shipped(word).input_ids for word in words} == {word: made(word).input_ids for word in words}
