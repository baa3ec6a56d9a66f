"""CLIP score, PickScore, LAION's aesthetics and ImageReward against their published formulas."""

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from scorer_files import (
    DIM,
    LETTERS,
    aesthetic_state,
    apply_layers,
    bert_tokenizer,
    cropped,
    pictures,
    reward,
    reward_state,
    save_clip_folder,
)

from popalign_core.config import (
    AestheticsConfig,
    ClipScoreConfig,
    HPSConfig,
    ImageRewardConfig,
    InceptionConfig,
    OpenClipConfig,
    PickScoreConfig,
)
from popalign_core.errors import ConfigError, DamagedWeightsError, InputError, MissingWeightsError
from popalign_core.evaluation.quality.aesthetics import load_head
from popalign_core.evaluation.quality.image_reward import load_image_reward
from popalign_core.evaluation.quality.scorer import Embedder
from popalign_core.evaluation.quality.scorer_factory import build_judges

TEXTS = ["a cat", "b", "a dog in the snow"]
SHOWN = pictures(3)


@pytest.fixture(scope="module")
def clip(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    folder = tmp_path_factory.mktemp("clip")
    return folder, save_clip_folder(folder)


def judges_of(folder: Path, **scorers: Any) -> Any:
    return build_judges(scorers, folder, "cpu", dict.fromkeys(scorers, "0123456789abcdef"))


@torch.no_grad()
def expected_cosines(model: Any) -> np.ndarray:
    """As the model card of PickScore has it, one picture and one text at a time."""
    cosines = []
    for picture, text in zip(SHOWN, TEXTS, strict=True):
        image = model.get_image_features(pixel_values=cropped(picture, 32)[None]).pooler_output
        letters = [ord(x) - 97 + (26 if i == len(word) - 1 else 0) for word in text.split() for i, x in enumerate(word)]
        words = model.get_text_features(torch.tensor([[52, *letters, 53]])).pooler_output
        cosines.append(torch.nn.functional.cosine_similarity(image, words)[0].item())
    return np.array(cosines)


def bert_tokens(text: str) -> torch.Tensor:
    """Begin 2, end 3, then padding 0 up to 35; all letters of a word but its first are marked."""
    letters = [5 + ord(x) - 97 + (26 if i else 0) for word in text.split() for i, x in enumerate(word)]
    return torch.tensor([2, *letters, 3] + [0] * (33 - len(letters)))


def test_clip_score_and_pick_score_differ_by_the_models_scale(clip: tuple[Path, Any]) -> None:
    folder, model = clip
    judges = judges_of(
        folder,
        clip_score=ClipScoreConfig(kind="clip"),
        pick_score=PickScoreConfig(kind="pick-score", path=str(folder)),
    )
    one, other = judges.scorers
    cosines = expected_cosines(model)
    np.testing.assert_allclose(one.score(SHOWN, TEXTS), 100 * cosines, rtol=0, atol=1e-4)
    np.testing.assert_allclose(other.score(SHOWN, TEXTS), model.logit_scale.exp().item() * cosines, rtol=0, atol=1e-4)
    assert (one.name, one.version, one.unit) == ("clip_score", "0123456789ab", "100 x cosine")
    assert (other.name, other.unit) == ("pick_score", "cosine x scale")
    assert np.ptp(cosines) > 0.01


def test_aesthetics_are_linear_layers_on_the_embedding_of_length_one(clip: tuple[Path, Any], tmp_path: Path) -> None:
    folder, model = clip
    state = aesthetic_state()
    torch.save(state, tmp_path / "sac+logos+ava1-l14-linearMSE.pth")
    settings = AestheticsConfig(
        kind="aesthetics", path=str(tmp_path / "sac+logos+ava1-l14-linearMSE.pth"), clip=str(folder)
    )
    (scorer,) = judges_of(folder, aesthetics=settings).scorers
    with torch.no_grad():
        values = torch.stack([cropped(picture, 32) for picture in SHOWN])
        embeds = model.get_image_features(pixel_values=values).pooler_output
        expected = apply_layers(embeds / embeds.norm(dim=1, keepdim=True), state).double().numpy()
    np.testing.assert_allclose(scorer.score(SHOWN, TEXTS), expected, rtol=0, atol=1e-4)
    assert scorer.unit == "1 to 10"


def test_image_reward_is_the_published_network_standardised(tmp_path: Path) -> None:
    state = reward_state()
    torch.save(state, tmp_path / "ImageReward.pt")
    scorer = load_image_reward("image_reward", "1", tmp_path / "ImageReward.pt", bert_tokenizer(tmp_path / "words"))
    words = [
        [2, *(5 + ord(x) - 97 + (26 if i else 0) for word in text.split() for i, x in enumerate(word)), 3]
        for text in TEXTS
    ]
    tokens = torch.tensor([one + [0] * (35 - len(one)) for one in words])
    values = torch.stack([cropped(picture, 32) for picture in SHOWN])
    expected = ((reward(state, values, tokens, tokens > 0) - 0.16717362830052426) / 1.0333394966054072).double().numpy()
    np.testing.assert_allclose(scorer.score(SHOWN, TEXTS), expected, rtol=0, atol=1e-4)
    alone = [scorer.score([picture], [text])[0] for picture, text in zip(SHOWN, TEXTS, strict=True)]
    np.testing.assert_allclose(alone, expected, rtol=0, atol=1e-4)
    assert np.ptp(expected) > 0.1
    with pytest.raises(InputError, match="3 images but 1 texts"):
        scorer.score(SHOWN, TEXTS[:1])


def test_a_batch_and_a_text_are_embedded_once_for_all_scorers(
    clip: tuple[Path, Any], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder, model = clip
    torch.save(aesthetic_state(), tmp_path / "head.pth")
    judges = judges_of(
        folder,
        clip_score=ClipScoreConfig(kind="clip", path=str(folder)),
        pick_score=PickScoreConfig(kind="pick-score", path=str(folder)),
        aesthetics=AestheticsConfig(kind="aesthetics", path=str(tmp_path / "head.pth"), clip=str(folder)),
    )
    seen = {"images": 0, "texts": 0}
    for method, what in (("get_image_features", "images"), ("get_text_features", "texts")):
        original = getattr(type(model), method)

        def count(
            self: Any, *args: Any, original: Callable[..., Any] = original, what: str = what, **options: Any
        ) -> Any:
            seen[what] += len(options.get("pixel_values", args[0] if args else ()))
            return original(self, *args, **options)

        monkeypatch.setattr(type(model), method, count)
    for batch in (SHOWN, list(SHOWN)):
        for scorer in judges.scorers:
            scorer.score(batch, ["a cat", "a cat", "b"])
    assert seen == {"images": 6, "texts": 2}


def test_no_score_depends_on_the_batch(clip: tuple[Path, Any]) -> None:
    (scorer,) = judges_of(clip[0], clip_score=ClipScoreConfig(kind="clip")).scorers
    alone = [scorer.score([picture], [text])[0] for picture, text in zip(SHOWN, TEXTS, strict=True)]
    np.testing.assert_allclose(scorer.score(SHOWN, TEXTS), alone, rtol=0, atol=1e-4)
    with pytest.raises(InputError, match="3 images but 2 texts; give one text per image"):
        scorer.score(SHOWN, TEXTS[:2])


def test_what_is_not_there_is_said_and_the_rest_is_measured(clip: tuple[Path, Any], tmp_path: Path) -> None:
    gone = str(tmp_path / "gone" / "HPS_v2.1_compressed.pt")
    judges = judges_of(
        clip[0],
        **{"hps_v2.1": HPSConfig(kind="hps", path=gone, tokenizer=str(clip[0]))},
        clip_score=ClipScoreConfig(kind="clip"),
        other=ClipScoreConfig(kind="clip", path=str(tmp_path / "no-clip")),
        inception=InceptionConfig(kind="inception", path=str(tmp_path / "inception-2015-12-05.pt")),
    )
    assert [scorer.name for scorer in judges.scorers] == ["clip_score"]
    assert [extractor.name for extractor in judges.extractors] == ["clip"]
    assert set(judges.unmeasured) == {"hps_v2.1", "other", "fid", "kid"}
    assert judges.unmeasured["hps_v2.1"] == (
        f"not measured: there is nothing at {gone}; run `popalign fetch` with the --preset, --config and --set of "
        f"this run, or `hf download xswu/HPSv2 HPS_v2.1_compressed.pt --local-dir {tmp_path / 'gone'}`. Nothing is "
        "downloaded without asking"
    )
    assert "nvlabs-fi-cdn.nvidia.com" in judges.unmeasured["fid"]


def test_without_any_clip_its_measures_are_said_too(tmp_path: Path) -> None:
    judges = judges_of(tmp_path, clip_score=ClipScoreConfig(kind="clip", path=str(tmp_path / "no-clip")))
    assert list(judges.unmeasured) == ["clip_score", "subject_accuracy", "diversity", "cmmd"]
    assert (judges.scorers, judges.extractors, judges.subjects) == ([], [], None)


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda state: state | {"layers.3.weight": torch.zeros(1)}, r"has 1 others \['layers.3.weight'\]"),
        (lambda state: {k: v for k, v in state.items() if "7" not in k}, "lacks 2 tensors"),
        (lambda state: state | {"layers.2.weight": torch.zeros(3, 3)}, r"size mismatch for 1\.weight"),
    ],
)
def test_another_head_is_refused(tmp_path: Path, damage: Callable[[Any], Any], message: str) -> None:
    torch.save(damage(aesthetic_state()), tmp_path / "head.pth")
    with pytest.raises(InputError, match=message):
        load_head(tmp_path / "head.pth")


def test_a_head_for_another_clip_is_refused(clip: tuple[Path, Any], tmp_path: Path) -> None:
    torch.save(aesthetic_state(DIM + 1), tmp_path / "head.pth")
    settings = AestheticsConfig(kind="aesthetics", path=str(tmp_path / "head.pth"), clip=str(clip[0]))
    (scorer,) = judges_of(clip[0], aesthetics=settings).scorers
    with pytest.raises(InputError, match="embeds in 32 dimensions, its network takes 33"):
        scorer.score(SHOWN, TEXTS)


def test_another_reward_is_refused(tmp_path: Path) -> None:
    words, path = bert_tokenizer(tmp_path / "words"), tmp_path / "ImageReward.pt"
    with pytest.raises(MissingWeightsError, match=r"hf download THUDM/ImageReward ImageReward\.pt"):
        load_image_reward("r", "1", path, words)
    torch.save(aesthetic_state(), path)
    with pytest.raises(InputError, match="is not an ImageReward: it lacks 5 tensors"):
        load_image_reward("r", "1", path, words)
    state = reward_state()
    del state["blip.visual_encoder.blocks.1.attn.qkv.bias"]
    torch.save(state, path)
    with pytest.raises(InputError, match=r"lacks 1 tensors \['encoder.layers.1.self_attn.qkv.bias'\]"):
        load_image_reward("r", "1", path, words)
    torch.save(reward_state(n_tokens=40), path)
    with pytest.raises(InputError, match=rf"knows {5 + 2 * len(LETTERS)} tokens, .* 40"):
        load_image_reward("r", "1", path, words)


def test_a_torn_clip_folder_is_refused(tmp_path: Path) -> None:
    save_clip_folder(tmp_path)
    whole = (tmp_path / "model.safetensors").read_bytes()
    (tmp_path / "model.safetensors").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(DamagedWeightsError, match=r"cannot load the CLIP in .*get its files again"):
        judges_of(tmp_path, clip_score=ClipScoreConfig(kind="clip"))


def test_open_clip_is_an_extra(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import sys

    monkeypatch.setitem(sys.modules, "open_clip", None)
    settings = OpenClipConfig(kind="open-clip", path=str(tmp_path / "clip.pt"), architecture="ViT-B-32")
    with pytest.raises(ConfigError, match=r"pip install 'popalign\[clip\]'"):
        judges_of(tmp_path, clip_score=settings)


def test_reward_settings_reach_the_scorer(tmp_path: Path) -> None:
    torch.save(reward_state(), tmp_path / "ImageReward.pt")
    words = bert_tokenizer(tmp_path / "words")
    settings = ImageRewardConfig(kind="image-reward", path=str(tmp_path / "ImageReward.pt"), tokenizer=str(words))
    (scorer,) = judges_of(tmp_path, image_reward=settings).scorers
    assert (scorer.name, scorer.version, scorer.unit) == ("image_reward", "0123456789ab", "standard deviations")


def test_an_embedder_keeps_nothing_of_an_older_batch() -> None:
    from popalign_core.attributes.zero_shot import SharedSpace

    space = SharedSpace(lambda shown: torch.tensor([[float(x.sum())] for x in shown]), lambda _: torch.ones(1, 1), 1.0)
    embedder = Embedder(space)
    first, second = [np.zeros((1, 1, 3), np.uint8)], [np.ones((1, 1, 3), np.uint8)]
    assert embedder.embed_images(first).item() == 0
    assert embedder.embed_images(second).item() == 3
    assert embedder.embed_images(first).item() == 0


def test_a_text_is_embedded_once_and_by_itself() -> None:
    """In a batch its last bits could depend on its neighbours, and so a score on who scored what before."""
    from popalign_core.attributes.zero_shot import SharedSpace

    asked: list[list[str]] = []

    def embed(texts: Sequence[str]) -> torch.Tensor:
        asked.append(list(texts))
        return torch.tensor([[float(len(text))] for text in texts])

    embedder = Embedder(SharedSpace(lambda _: torch.ones(1, 1), embed, 1.0))
    assert embedder.embed_texts(["cat", "a", "cat"]).tolist() == [[3.0], [1.0], [3.0]]
    assert embedder.embed_texts(["ox", "a"]).tolist() == [[2.0], [1.0]]
    assert asked == [["cat"], ["a"], ["ox"]]
