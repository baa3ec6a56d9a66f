"""Where public weights come from, as data: repositories of the Hugging Face hub, and addresses. Downloads nothing."""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

Kind = Literal["pipeline", "network", "tokenizer", "file"]
Group = Literal["model", "denoiser", "vae", "lora", "safety-checker", "classifiers", "scorers"]
GROUPS: tuple[Group, ...] = ("model", "denoiser", "vae", "lora", "safety-checker", "classifiers", "scorers")

BY_COMMAND = "run `popalign fetch` with the --preset, --config and --set of this run"
"""How messages about missing weights begin to say what to do."""


@dataclass(frozen=True)
class HubFiles:
    """Files of one repository of the hub.

    Attributes:
        repo: Its id.
        kind: Which files are read: of a whole diffusers pipeline, of one network with its tokenizer and processor,
            of a tokenizer alone, or a single file.
        group: By which `popalign fetch --what` names it.
        revision: Commit, branch or tag.
        inside: The folder, or the file, in the repository; "" is its top.
        place: The folder or the file that it becomes; None is the hub's own cache.
        replaced: Parts of a pipeline whose weights come from elsewhere.
    """

    repo: str
    kind: Kind
    group: Group
    revision: str = "main"
    inside: str = ""
    place: Path | None = None
    replaced: tuple[str, ...] = ()

    @property
    def by_hand(self) -> str:
        """The command that gets the same without this project."""
        if self.place is None:
            return f"`hf download {self.repo} --revision {self.revision}`"
        if self.kind == "file":
            return f"`hf download {self.repo} {self.inside} --local-dir {self.place.parent}`"
        if self.inside:
            return f"`hf download {self.repo} --include '{self.inside}/*' --local-dir {self.place.parent}`"
        return f"`hf download {self.repo} --local-dir {self.place}`"


@dataclass(frozen=True)
class WebFile:
    """One file behind an address.

    Attributes:
        url: Absolute.
        place: The file that it becomes.
        group: By which `popalign fetch --what` names it.
        sha256: Of its bytes, where somebody published it.
    """

    url: str
    place: Path
    group: Group
    sha256: str | None = None

    @property
    def by_hand(self) -> str:
        """The command that gets the same without this project."""
        return f"`curl -L --output {self.place} {self.url}`"


Source = HubFiles | WebFile


def how_to_get(source: Source) -> str:
    """What a message about missing weights tells to do."""
    return f"{BY_COMMAND}, or {source.by_hand}"
