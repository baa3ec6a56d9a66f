import json
import os
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from tokenizers.processors import TemplateProcessing
from transformers import CLIPConfig, CLIPModel, CLIPTextConfig, CLIPVisionConfig, PreTrainedTokenizerFast

from popalign_core.errors import DamagedWeightsError, InputError, MissingWeightsError
from popalign_core.evaluation.clip_score import clip_scores, score_images, subject_accuracy
from popalign_core.models.clip import ClipScorer, embed_images, embed_texts, load_clip
from popalign_core.models.image_processors import ImagePreprocessing

MEAN, STD = (0.4, 0.5, 0.6), (0.2, 0.25, 0.3)
WORDS = ["<pad>", "<start>", "<end>", "<unk>", "a", "photo", "of", "cat", "dog", "apple"]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("clip")
    torch.manual_seed(0)
    text = CLIPTextConfig(
        vocab_size=len(WORDS),
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=8,
        bos_token_id=1,
        eos_token_id=2,
        pad_token_id=0,
    )
    vision = CLIPVisionConfig(
        hidden_size=16, intermediate_size=32, num_hidden_layers=1, num_attention_heads=2, image_size=16, patch_size=8
    )
    config = CLIPConfig(text_config=text.to_dict(), vision_config=vision.to_dict(), projection_dim=12)
    CLIPModel(config).half().save_pretrained(path)
    words = Tokenizer(WordLevel({word: number for number, word in enumerate(WORDS)}, unk_token="<unk>"))
    words.pre_tokenizer = Whitespace()
    words.post_processor = TemplateProcessing(single="<start> $A <end>", special_tokens=[("<start>", 1), ("<end>", 2)])
    PreTrainedTokenizerFast(
        tokenizer_object=words, bos_token="<start>", eos_token="<end>", pad_token="<pad>", unk_token="<unk>"
    ).save_pretrained(path)
    _write_preprocessing(path, {})
    return path


def _write_preprocessing(path: Path, change: dict[str, object]) -> None:
    document = {
        "size": {"shortest_edge": 16},
        "crop_size": {"height": 16, "width": 16},
        "resample": 3,
        "rescale_factor": 1 / 255,
        "image_mean": MEAN,
        "image_std": STD,
        **change,
    }
    kept = {key: value for key, value in document.items() if value is not None}
    (path / "preprocessor_config.json").write_text(json.dumps(kept))


@pytest.fixture(scope="module")
def scorer(folder: Path) -> ClipScorer:
    return load_clip(folder)


@pytest.fixture(scope="module")
def pixels() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, size=(6, 24, 20, 3), dtype=np.uint8)


def test_preprocessing_is_resize_crop_rescale_normalise(pixels: np.ndarray) -> None:
    steps = ImagePreprocessing(16, (16, 16), 3, 1 / 255, MEAN, STD)
    # 20 x 24 (w x h): shorter side 20 -> 16, longer int(16 * 24 / 20) = 19; 16 rows from row (19 - 16) // 2 = 1.
    resized = np.asarray(Image.fromarray(pixels[0]).resize((16, 19), Image.Resampling.BICUBIC))
    expected = (resized[1:17] / 255 - np.array(MEAN)) / np.array(STD)
    np.testing.assert_allclose(steps.apply_all([pixels[0]])[0].numpy(), expected.transpose(2, 0, 1), atol=1e-5)


@pytest.mark.filterwarnings("ignore:This process .* is multi-threaded:DeprecationWarning")
def test_threads_and_their_absence_give_the_same_bits(pixels: np.ndarray) -> None:
    """Those of the formula on floats, also after a fork, which has none of the threads."""
    steps = ImagePreprocessing(16, (16, 16), 3, 1 / 255, MEAN, STD)
    before, found = torch.get_num_threads(), []
    try:
        for n_threads in (2, 1):
            torch.set_num_threads(n_threads)
            found.append(steps.apply_all(list(pixels)))
        torch.set_num_threads(2)
        child = os.fork()
        if child == 0:
            os._exit(0 if torch.equal(steps.apply_all(list(pixels)), found[0]) else 1)
        assert os.waitpid(child, 0)[1] == 0
    finally:
        torch.set_num_threads(before)
    resized = [
        Image.fromarray(image).resize((16, 19), Image.Resampling.BICUBIC).crop((0, 1, 16, 17)) for image in pixels
    ]
    values = torch.from_numpy(np.stack([np.asarray(image) for image in resized])).permute(0, 3, 1, 2).float() * (
        1 / 255
    )
    expected = (values - torch.tensor(MEAN)[:, None, None]) / torch.tensor(STD)[:, None, None]
    assert torch.equal(found[0], expected)
    assert torch.equal(found[1], expected)
    assert found[0].is_contiguous()


def test_image_of_the_right_size_is_not_resampled(pixels: np.ndarray) -> None:
    image = pixels[0, :16, :16]
    steps = ImagePreprocessing(16, (16, 16), 3, 1 / 255, (0.5,) * 3, (0.5,) * 3)
    np.testing.assert_allclose(steps.apply_all([image])[0].permute(1, 2, 0).numpy(), image / 127.5 - 1, atol=1e-6)


def test_score_is_a_hundred_times_the_models_own_cosine(scorer: ClipScorer, pixels: np.ndarray) -> None:
    texts = ["a photo of a cat", "a photo of a dog", "apple", "cat", "dog", "a photo of a cat"]
    found = score_images(scorer, iter([pixels[:4], pixels[4:]]), texts)
    tokens = scorer.tokenizer(texts, padding=True, return_tensors="pt")
    values = scorer.preprocessing.apply_all(pixels)
    with torch.no_grad():
        output = scorer.model(tokens["input_ids"], values, attention_mask=tokens["attention_mask"])
    cosine = (output.logits_per_image / scorer.model.logit_scale.exp()).diagonal()
    assert found.shape == (6,)
    np.testing.assert_allclose(found, 100 * cosine.numpy(), atol=1e-3)


def test_score_does_not_depend_on_the_batches(scorer: ClipScorer, pixels: np.ndarray) -> None:
    texts = ["cat"] * 6
    one = score_images(scorer, [pixels], texts)
    np.testing.assert_allclose(score_images(scorer, [image[None] for image in pixels], texts), one, atol=1e-4)


def test_weights_kept_in_half_are_scored_in_single(scorer: ClipScorer) -> None:
    assert scorer.model.dtype == torch.float32
    assert not any(parameter.requires_grad for parameter in scorer.model.parameters())


def test_long_text_is_cut_and_nothing_gives_nothing(scorer: ClipScorer) -> None:
    assert embed_texts(scorer, ["cat " * 50]).shape == (1, 12)
    assert embed_texts(scorer, []).shape == (0, 12)
    assert embed_images(scorer, []).shape == (0, 12)


def test_zero_shot_accuracy_by_hand() -> None:
    candidates = torch.eye(3)
    images = torch.tensor([[0.9, 0.1, 0.0], [0.2, 0.1, 0.9], [0.0, 0.6, 0.5]])
    np.testing.assert_array_equal(subject_accuracy(images, candidates, [0, 1, 1]), [1.0, 0.0, 1.0])


def test_version_follows_weights_and_preprocessing(folder: Path, scorer: ClipScorer, tmp_path: Path) -> None:
    assert load_clip(folder).version == scorer.version
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    _write_preprocessing(tmp_path, {"crop_size": 16, "size": 16, "resample": 2})
    changed = load_clip(tmp_path)
    assert changed.version != scorer.version
    assert changed.preprocessing == ImagePreprocessing(16, (16, 16), 2, 1 / 255, MEAN, STD)


@pytest.mark.parametrize("name", ["config.json", "model.safetensors", "preprocessor_config.json"])
def test_missing_file_is_named(folder: Path, tmp_path: Path, name: str) -> None:
    for file in folder.iterdir():
        if file.name != name:
            (tmp_path / file.name).write_bytes(file.read_bytes())
    with pytest.raises(MissingWeightsError, match=name):
        load_clip(tmp_path)


def test_foreign_preprocessing_is_refused(folder: Path, tmp_path: Path) -> None:
    for file in folder.iterdir():
        (tmp_path / file.name).write_bytes(file.read_bytes())
    _write_preprocessing(tmp_path, {"image_processor_type": "CLIPImageProcessor", "sharpen": 2})
    with pytest.raises(DamagedWeightsError, match="has 'sharpen'"):
        load_clip(tmp_path)


def test_counts_must_agree(scorer: ClipScorer, pixels: np.ndarray) -> None:
    with pytest.raises(InputError, match="6 images but 1 texts"):
        score_images(scorer, [pixels], ["cat"])
    with pytest.raises(InputError, match="2 images but 1 answers"):
        subject_accuracy(torch.eye(2), torch.eye(2), [0])
    assert clip_scores(torch.eye(2), torch.eye(2)).tolist() == [100.0, 100.0]


def test_an_image_processor_of_another_size_is_refused(folder: Path, tmp_path: Path) -> None:
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    _write_preprocessing(tmp_path, {"crop_size": 8})
    with pytest.raises(DamagedWeightsError, match=r"the CLIP in .* does not take the \[1, 3, 8, 8\] of its image proc"):
        load_clip(tmp_path)
