"""What may be done with public weights, by where they come from. A summary for people to decide by, no legal advice."""

from dataclasses import dataclass

from popalign_core.sources import HubFiles, Source

UNKNOWN = "not known"
_FORBIDDEN_USES = "commercial use allowed; forbids the harmful uses that its Attachment A lists, and hands that on"
_RESEARCH = "no commercial use: research and evaluation alone"


@dataclass(frozen=True)
class License:
    """A license in a line.

    Attributes:
        name: Of the license.
        terms: What it forbids; "" where nothing but the loss of its notice.
        url: Where its text is.
    """

    name: str
    terms: str
    url: str


_HUB = "https://huggingface.co/"
_DEEPFACE = License(
    "DeepFace's code is MIT; weights trained on VGG-Face, non-commercial",
    _RESEARCH,
    "https://github.com/serengil/deepface#licence",
)
_BY_REPOSITORY = {
    "stabilityai/stable-diffusion-xl-base-1.0": ("CreativeML Open RAIL++-M", _FORBIDDEN_USES),
    "stabilityai/sdxl-turbo": ("Stability AI Non-Commercial Research Community License", f"{_RESEARCH}; see URL"),
    "stable-diffusion-v1-5/stable-diffusion-v1-5": ("CreativeML Open RAIL-M", _FORBIDDEN_USES),
    "ByteDance/SDXL-Lightning": ("Open RAIL++", _FORBIDDEN_USES),
    "openai/clip-vit-large-patch14": ("MIT", "its model card takes any deployed use as out of scope"),
    "xswu/HPSv2": ("Apache-2.0", ""),
    "yuvalkirstain/PickScore_v1": ("MIT", ""),
    "THUDM/ImageReward": ("Apache-2.0", ""),
    "google-bert/bert-base-uncased": ("Apache-2.0", ""),
}
# The longest address that fits decides.
_BY_ADDRESS = {
    "https://github.com/serengil/deepface_models/": _DEEPFACE,
    "https://github.com/serengil/deepface_models/releases/download/v1.0/retinaface": License(
        "MIT", "", "https://github.com/serengil/retinaface/blob/master/LICENSE"
    ),
    "https://github.com/opencv/opencv_zoo/raw/main/models/face_detection_yunet/": License(
        "MIT", "", "https://github.com/opencv/opencv_zoo/blob/main/models/face_detection_yunet/LICENSE"
    ),
    "https://github.com/christophschuhmann/improved-aesthetic-predictor/": License(
        "MIT or Apache-2.0: accounts differ",
        "see URL",
        "https://github.com/christophschuhmann/improved-aesthetic-predictor",
    ),
    "https://nvlabs-fi-cdn.nvidia.com/stylegan2-ada-pytorch/": License(
        "NVIDIA Source Code License for StyleGAN2 ADA",
        _RESEARCH,
        "https://github.com/NVlabs/stylegan2-ada-pytorch/blob/main/LICENSE.txt",
    ),
}


def license_of(source: Source, told: str | None = None) -> License:
    """The license of what a source brings.

    Args:
        source: Where it comes from.
        told: What the hub's card of the repository says, for those that are not in the table.
    """
    if isinstance(source, HubFiles):
        url = f"{_HUB}{source.repo}"
        if source.repo in _BY_REPOSITORY:
            return License(*_BY_REPOSITORY[source.repo], url)
        if told:
            return License(f"{told} by its card", "what it forbids is not known here; see URL", url)
        return License(UNKNOWN, "see URL", url)
    fitting = [address for address in _BY_ADDRESS if source.url.startswith(address)]
    return _BY_ADDRESS[max(fitting, key=len)] if fitting else License(UNKNOWN, "see URL", source.url)
