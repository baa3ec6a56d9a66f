"""Scoring images: the public calls, one image at a time, and this project's batched scorers, on the same files.

The files are small checkpoints in the published formats, which the tests make (`tests/support/scorer_files.py`). Every
scorer is compared with a call an image as its model card or package makes it; `hpsv2.score` reads its checkpoint at
every call, so HPS is compared with that and also with the same steps on a network that stays loaded. All go in turns
and must give the same scores to 1e-4. `--same N` images in a row have one prompt, as in an evaluation.

`popalign` is one process with two threads of torch; `workers` two warm processes with one each, as the stage runs with
`runtime.runner=processes` and `runtime.n_workers=2`: for a while after each parallel region OpenMP's threads wait at
full speed and take a core from those that resize images, which is most of the work of a small network.

    python benchmarks/scoring.py
    python benchmarks/scoring.py --images 200 --size 1024 --rounds 5

On two quiet cores of an AMD EPYC (torch 2.13, 192 images of 256 px, best of five rounds, three runs), in images/s,
public call / popalign / workers: CLIP score 357 / 1879 / 2890 (4.9 to 5.4 and 7.6 to 8.1 times), PickScore 358 / 1943
/ 2869 (5.2 to 5.4; 7.8 to 8.0), aesthetics 575 / 2097 / 3054 (3.5 to 3.8; 5.3 to 5.5), HPS 73 / 1576 / 2066 of a call
that reads its checkpoint (21; 28) and 323 / 1575 / 2023 of one that keeps it (4.7 to 4.9; 6.3), ImageReward 231 /
1160 / 1696 (4.8 to 5.0; 7.3 to 7.5). Others' load hits the public calls hardest, since two threads meet at the end of
every small operation: measure on quiet cores. The networks are small here: with the real ones on a processor, what
remains is that a prompt's words are embedded once and that scorers of one CLIP share its embedding of an image.
"""

import argparse
import json
import math
import statistics
import sys
import tempfile
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ProcessPoolExecutor
from functools import partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image
from torch.nn import functional

from popalign_core.config import (
    AestheticsConfig,
    ClipScoreConfig,
    HPSConfig,
    ImageRewardConfig,
    PickScoreConfig,
    ScorerConfig,
)
from popalign_core.evaluation.quality.open_clip_files import load_open_clip_vit
from popalign_core.evaluation.quality.scorer import Scorer
from popalign_core.evaluation.quality.scorer_factory import build_judges
from popalign_core.evaluation.quality.scorer_files import CLIP_MEAN, CLIP_STD
from tasks.workers.shard_worker import Place, run_job

sys.path.insert(0, str(Path(__file__).resolve().parents[1] / "tests" / "support"))
import scorer_files as files

Images = list[NDArray[np.uint8]]
Call = Callable[[NDArray[np.uint8], str], float]
SUBJECTS = ("doctor", "nurse", "judge", "dancer", "farmer", "pilot", "baker", "artist")


def write_files(folder: Path) -> dict[str, Any]:
    """The checkpoints, and the configuration that names them."""
    files.save_clip_folder(folder / "clip")
    torch.save({"state_dict": files.open_clip_state()}, folder / "HPS_v2.1_compressed.pt")
    torch.save(files.aesthetic_state(), folder / "aesthetics.pth")
    torch.save(files.reward_state(), folder / "ImageReward.pt")
    words, clip = files.bert_tokenizer(folder / "words"), str(folder / "clip")
    return {
        "clip_score": ClipScoreConfig(kind="clip", path=clip),
        "pick_score": PickScoreConfig(kind="pick-score", path=clip),
        "aesthetics": AestheticsConfig(kind="aesthetics", path=str(folder / "aesthetics.pth"), clip=clip),
        "hps": HPSConfig(kind="hps", path=str(folder / "HPS_v2.1_compressed.pt"), tokenizer=clip),
        "image_reward": ImageRewardConfig(
            kind="image-reward", path=str(folder / "ImageReward.pt"), tokenizer=str(words)
        ),
    }


def public_calls(folder: Path) -> dict[str, Call]:
    """One image and its prompt to a score, by the steps of model cards and packages; all loaded once but `hps`."""
    from transformers import CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

    model: Any = CLIPModel.from_pretrained(folder / "clip").eval()
    process: Any = CLIPImageProcessorPil.from_pretrained(folder / "clip")
    tokenizer: Any = CLIPTokenizer.from_pretrained(folder / "clip")
    head = torch.load(folder / "aesthetics.pth")
    path = folder / "HPS_v2.1_compressed.pt"
    hps = load_open_clip_vit(torch.load(path)["state_dict"], path, n_heads=files.N_HEADS, activation="gelu").eval()
    renamed = folder / "hps_in_our_names.pt"
    torch.save({"state_dict": hps.state_dict()}, renamed)

    def tokens(text: str) -> Any:
        return tokenizer(text, padding="max_length", truncation=True, max_length=20, return_tensors="pt")

    def cosine(network: Any, values: torch.Tensor, text: str) -> float:
        image = network.get_image_features(pixel_values=values).pooler_output
        words = network.get_text_features(**tokens(text)).pooler_output
        return float(functional.cosine_similarity(image, words))

    def seen(picture: NDArray[np.uint8]) -> torch.Tensor:
        values: torch.Tensor = process(images=Image.fromarray(picture), return_tensors="pt")["pixel_values"]
        return values

    def aesthetics(picture: NDArray[np.uint8], text: str) -> float:
        image = model.get_image_features(pixel_values=seen(picture)).pooler_output
        return float(files.apply_layers(image / image.norm(dim=-1, keepdim=True), head))

    def hps_loaded(picture: NDArray[np.uint8], text: str) -> float:
        return 100 * cosine(hps, padded(picture, hps.config.vision_config.image_size), text)

    def hps_reloading(picture: NDArray[np.uint8], text: str) -> float:
        hps.load_state_dict(torch.load(renamed)["state_dict"])
        return hps_loaded(picture, text)

    return {
        "clip_score": lambda picture, text: 100 * cosine(model, seen(picture), text),
        "pick_score": lambda picture, text: model.logit_scale.exp().item() * cosine(model, seen(picture), text),
        "aesthetics": aesthetics,
        "hps": hps_reloading,
        "hps, loaded once": hps_loaded,
    }


def padded(picture: NDArray[np.uint8], side: int) -> torch.Tensor:
    """hpsv2's preprocessing of one image."""
    values = torch.from_numpy(picture).permute(2, 0, 1).float() / 255
    height, width = (round(length * side / max(picture.shape[:2])) for length in picture.shape[:2])
    values = functional.interpolate(values[None], (height, width), mode="bicubic", antialias=True)[0]
    above, left = (side - height) // 2, (side - width) // 2
    values = functional.pad(values, (left, side - width - left, above, side - height - above))
    return ((values - torch.tensor(CLIP_MEAN)[:, None, None]) / torch.tensor(CLIP_STD)[:, None, None])[None]


class Workers:
    """Processes as those of `--runner processes`, warm, with one torch thread each and a part of the images."""

    def __init__(self, n: int, pictures: Images, texts: Sequence[str], batch_size: int, folder: Path) -> None:
        self._pools = [ProcessPoolExecutor(1, get_context("spawn")) for _ in range(n)]
        self._place = Place(str(folder), n_threads=1, n_workers=n)
        length = batch_size * math.ceil(len(pictures) / batch_size / n)  # whole batches, as in shards
        parts = [slice(start, start + length) for start in range(0, n * length, length)]
        self._ask(_take_images, [(pictures[part], texts[part], batch_size) for part in parts])

    def load(self, load: Callable[[], Scorer]) -> None:
        """Load a scorer in each."""
        self._ask(_take_scorer, [(load,)] * len(self._pools))

    def score(self) -> NDArray[np.float64]:
        """What the scorers loaded last say of all images."""
        return np.concatenate(self._ask(_score_part, [()] * len(self._pools)))

    def close(self) -> None:
        """End the processes."""
        for pool in self._pools:
            pool.shutdown()

    def _ask(self, call: Callable[..., Any], arguments: Sequence[tuple[Any, ...]]) -> list[Any]:
        futures = [
            pool.submit(run_job, partial(call, *given), self._place, in_process=True)
            for pool, given in zip(self._pools, arguments, strict=True)
        ]
        return [future.result() for future in futures]


_part: dict[str, Any] = {}
"""Of a worker."""


def _take_images(pictures: Images, texts: Sequence[str], batch_size: int) -> None:
    _part.update(pictures=pictures, texts=texts, batch_size=batch_size)


def _take_scorer(load: Callable[[], Scorer]) -> None:
    _part["scorer"] = load()


@torch.inference_mode()
def _score_part() -> NDArray[np.float64]:
    return _batched(_part["scorer"], _part["pictures"], _part["texts"], _part["batch_size"])


def _load_scorer(name: str, settings: ScorerConfig, folder: Path) -> Scorer:
    return build_judges({name: settings}, folder / "clip", "cpu", {}).scorers[0]


def compare(pictures: Images, texts: Sequence[str], options: argparse.Namespace, folder: Path) -> dict[str, Any]:
    """Every scorer against its public call, in turns."""
    settings = write_files(folder)
    reward = _load_scorer("image_reward", settings["image_reward"], folder)

    def image_reward(picture: NDArray[np.uint8], text: str) -> float:
        return float(reward.score([picture], [text])[0])  # its package runs the same networks, one image a call

    calls = public_calls(folder) | {"image_reward": image_reward}
    workers = Workers(options.workers, pictures, texts, options.batch_size, folder)
    try:
        return {
            name: _race(call, partial(_load_scorer, kind, settings[kind], folder), workers, pictures, texts, options)
            for name, call in calls.items()
            for kind in (name.partition(",")[0],)
        }
    finally:
        workers.close()


@torch.inference_mode()
def _race(
    public: Call,
    load: Callable[[], Scorer],
    workers: Workers,
    pictures: Images,
    texts: Sequence[str],
    options: argparse.Namespace,
) -> dict[str, Any]:
    """Loading is on nobody's clock, but the scorers are new ones every round, as they remember texts."""
    seconds: dict[str, list[float]] = {"public": [], "popalign": [], "workers": []}
    scores: dict[str, NDArray[np.float64]] = {}
    for _ in range(options.rounds + 1):
        scorer = load()
        workers.load(load)
        sides: dict[str, Callable[[], NDArray[np.float64]]] = {
            "public": lambda: np.array([public(*pair) for pair in zip(pictures, texts, strict=True)]),
            "popalign": partial(_batched, scorer, pictures, texts, options.batch_size),
            "workers": workers.score,
        }
        for name, side in sides.items():
            start = time.perf_counter()
            scores[name] = side()
            seconds[name].append(time.perf_counter() - start)
    difference = max(float(np.abs(scores["public"] - scores[name]).max()) for name in ("popalign", "workers"))
    if difference > 1e-4:
        raise SystemExit(f"the scores differ by {difference}")
    kept = {name: values[1:] for name, values in seconds.items()}  # the first warms up
    best = {name: min(values) for name, values in kept.items()}
    return {
        "images_per_s": {name: round(len(pictures) / value, 1) for name, value in best.items()},
        "ratio_of_best_rounds": {name: round(best["public"] / best[name], 2) for name in ("popalign", "workers")},
        "ratio_of_neighbours": {
            name: round(statistics.median(a / b for a, b in zip(kept["public"], kept[name], strict=True)), 2)
            for name in ("popalign", "workers")
        },
        "largest_difference": difference,
    }


def _batched(scorer: Scorer, pictures: Images, texts: Sequence[str], batch_size: int) -> NDArray[np.float64]:
    starts = range(0, len(pictures), batch_size)
    return np.concatenate([scorer.score(pictures[i : i + batch_size], texts[i : i + batch_size]) for i in starts])


def parse_options() -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    for name, default in (("--images", 192), ("--size", 256), ("--batch-size", 32), ("--same", 24), ("--rounds", 3)):
        parser.add_argument(name, type=int, default=default)
    parser.add_argument("--threads", type=int, default=2, help="of torch, where all is done in one process")
    parser.add_argument("--workers", type=int, default=2, help="processes with one torch thread each")
    return parser.parse_args()


def main() -> None:
    """Run and print one JSON object."""
    options = parse_options()
    torch.set_num_threads(options.threads)
    pictures = files.pictures(options.images, options.size, options.size)
    texts = [f"a photo of a {SUBJECTS[i // options.same % len(SUBJECTS)]}" for i in range(options.images)]
    with tempfile.TemporaryDirectory() as folder:
        results = compare(pictures, texts, options, Path(folder))
    sys.stdout.write(json.dumps(results | {"settings": vars(options) | {"torch": torch.__version__}}, indent=1) + "\n")


if __name__ == "__main__":
    main()
