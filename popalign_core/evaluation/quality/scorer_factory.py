"""From the configuration to the scorers that it describes."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from popalign_core.attributes.zero_shot import SharedSpace, load_open_clip, space_of
from popalign_core.config import (
    AestheticsConfig,
    ClipScoreConfig,
    HPSConfig,
    ImageRewardConfig,
    InceptionConfig,
    OpenClipConfig,
    PickScoreConfig,
    ScorerConfig,
)
from popalign_core.config.evaluation import CMMD, DIVERSITY, FID, KID, SUBJECT_ACCURACY
from popalign_core.errors import DamagedWeightsError, MissingWeightsError
from popalign_core.evaluation.quality.features import CLIP, INCEPTION, Extractor, load_inception
from popalign_core.evaluation.quality.scorer import CosineScorer, Embedder, Scorer
from popalign_core.evaluation.score_units import COSINE, PICK

FIRST_CLIP = (SUBJECT_ACCURACY, DIVERSITY, CMMD)
"""What the first CLIP gives in addition to its score."""
_VERSION_DIGITS = 12


@dataclass
class Judges:
    """All scorers and feature extractors.

    Attributes:
        scorers: Of one image and its prompt.
        extractors: Whose features are kept.
        subjects: The first CLIP, which tells the subjects of images without people apart; None without a CLIP.
        subjects_version: Its version.
        unmeasured: Metric -> why it cannot be measured here.
    """

    scorers: list[Scorer] = field(default_factory=list)
    extractors: list[Extractor] = field(default_factory=list)
    subjects: Embedder | None = None
    subjects_version: str = ""
    unmeasured: dict[str, str] = field(default_factory=dict)


def build_judges(
    scorers: Mapping[str, ScorerConfig], shipped: Path, device: str, contents: Mapping[str, str]
) -> Judges:
    """Load every scorer once; those whose weights are not there are set aside with the reason.

    Args:
        scorers: By name.
        shipped: Folder of the CLIP for those that name none.
        device: Where networks go.
        contents: Name -> sha256 of the weights; those without one are not there.

    Raises:
        ConfigError: When a package is absent.
        DamagedWeightsError: When weights are there but not whole.
        InputError: When weights are not what they should be.
    """
    judges, clips = Judges(), _Clips(device)
    for name, settings in scorers.items():
        try:
            _add(judges, name, settings, clips, contents.get(name, "")[:_VERSION_DIGITS], shipped)
        except DamagedWeightsError:
            raise
        except MissingWeightsError as error:
            judges.unmeasured |= dict.fromkeys(_metrics_of(name, settings), f"not measured: {error}")
    if judges.subjects is not None:  # another CLIP stands in
        judges.unmeasured = {name: why for name, why in judges.unmeasured.items() if name not in FIRST_CLIP}
    return judges


def _metrics_of(name: str, settings: ScorerConfig) -> tuple[str, ...]:
    if isinstance(settings, InceptionConfig):
        return FID, KID
    return (name, *FIRST_CLIP) if isinstance(settings, ClipScoreConfig | OpenClipConfig) else (name,)


class _Clips:
    """Each CLIP folder, loaded once and shared."""

    def __init__(self, device: str) -> None:
        self.device = device
        self._loaded: dict[tuple[Path, Path | None], Embedder] = {}

    def load(self, folder: Path, processor: Path | None = None) -> Embedder:
        from popalign_core.evaluation.quality.scorer_files import require
        from popalign_core.models.clip import load_clip

        place = (require(folder), None if processor is None else require(processor))
        if place not in self._loaded:
            self._loaded[place] = Embedder(space_of(load_clip(place[0], self.device, place[1])))
        return self._loaded[place]


def _add(judges: Judges, name: str, settings: ScorerConfig, clips: _Clips, version: str, shipped: Path) -> None:
    if isinstance(settings, InceptionConfig):
        network = load_inception(Path(settings.path), clips.device)
        judges.extractors.append(Extractor(INCEPTION, version, network))
        return
    if isinstance(settings, ClipScoreConfig | OpenClipConfig):
        embedder = _load_judge_of_subjects(settings, clips, shipped)
        if judges.subjects is None:
            judges.subjects, judges.subjects_version = embedder, version
            judges.extractors.append(Extractor(CLIP, version, embedder.embed_images))
        judges.scorers.append(CosineScorer(name, version, COSINE, embedder, 100.0))
        return
    judges.scorers.append(_load(name, settings, clips, version))


def _load_judge_of_subjects(settings: ClipScoreConfig | OpenClipConfig, clips: _Clips, shipped: Path) -> Embedder:
    if isinstance(settings, OpenClipConfig):
        return Embedder(load_open_clip(settings.path, settings.architecture, clips.device))
    return clips.load(shipped if settings.path is None else Path(settings.path))


def _load(
    name: str,
    settings: HPSConfig | PickScoreConfig | AestheticsConfig | ImageRewardConfig,
    clips: _Clips,
    version: str,
) -> Scorer:
    path = Path(settings.path)
    if isinstance(settings, HPSConfig):
        from popalign_core.evaluation.quality.hps import load_hps

        space: SharedSpace = load_hps(path, Path(settings.tokenizer), clips.device)
        return CosineScorer(name, version, COSINE, Embedder(space), 100.0)
    if isinstance(settings, PickScoreConfig):
        embedder = clips.load(path, None if settings.processor is None else Path(settings.processor))
        return CosineScorer(name, version, PICK, embedder, embedder.scale)
    if isinstance(settings, AestheticsConfig):
        from popalign_core.evaluation.quality.aesthetics import AestheticScorer, load_head

        return AestheticScorer(name, version, clips.load(Path(settings.clip)), load_head(path))
    from popalign_core.evaluation.quality.image_reward import load_image_reward

    return load_image_reward(name, version, path, Path(settings.tokenizer), clips.device)
