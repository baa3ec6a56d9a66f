"""What training reads: the sampler's latents, who is preferred, and the captions' embeddings."""

from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import safe_open
from torch import Tensor

from popalign_core.errors import InputError


class Latents(Protocol):
    """A tensor [N, C, h, w], or what stands for one: rows are taken from it by number."""

    @property
    def shape(self) -> torch.Size:
        """(N, C, h, w)."""
        ...

    def __len__(self) -> int: ...

    def __getitem__(self, rows: Tensor, /) -> Tensor: ...


class StoredLatents:
    """Rows of safetensors files, read when they are asked for: SDXL's 36,000 latents are 9 GB that need no memory."""

    def __init__(self, files: Sequence[Path], places: Sequence[tuple[int, int]]) -> None:
        """Row i is row `places[i][1]` of tensor `latents` of file number `places[i][0]`."""
        self._files, self._places = list(files), list(places)
        self._open: dict[int, Any] = {}
        size = self._slice(0).get_shape()[1:] if self._files else (0, 0, 0)
        self.shape = torch.Size((len(self._places), *size))

    def __len__(self) -> int:
        return len(self._places)

    def __getitem__(self, rows: Tensor) -> Tensor:
        if not len(rows):
            return torch.zeros((0, *self.shape[1:]))
        taken = (self._places[row] for row in rows.tolist())
        return torch.cat([self._slice(file)[row : row + 1] for file, row in taken]).float()

    def _slice(self, file: int) -> Any:
        if file not in self._open:
            opened: Any = safe_open(self._files[file], framework="pt")
            self._open[file] = opened.get_slice("latents")
        return self._open[file]


@dataclass(frozen=True)
class PreferenceData:
    """N samples in pairs of sets, or in groups of one prompt that have advantages in place of sides.

    Preferred and dispreferred samples of a pair carry the same (neutral) caption.

    Attributes:
        latents: [N, C, h, w] float32, the sampler's final latents in the UNet's scaled space: what `add_noise` takes.
        preferred: [N] bool.
        prompt_index: [N] int64, the caption, a row of `prompt_embeds`.
        set_index: [N] int64, the pair of sets, or the group, a sample belongs to.
        prompt_embeds: [P, L, D] float32.
        pooled_prompt_embeds: [P, D2] float32.
        empty_prompt_embeds: [1, L, D] float32, of the empty caption.
        empty_pooled: [1, D2] float32.
        retained_latents: [R, C, h, w] float32: images that retention holds under their own captions; R may be 0.
        retained_prompt_index: [R] int64, those captions.
        retained_generic: [R] bool, whether the caption is a generic one, else it names an identity.
        classes: [N] int64, the class of each sample among those of `target`; None where unknown.
        target: [K] float32, the distribution to calibrate to; None where none is given.
        guidance_scale: What the sampler samples with; read by models that embed it (FLUX.1-dev) alone.
        advantages: [N] float32, of each sample within its group, and `preferred` is not read; None in pairs of sets.
        log_ratios: [N] float32, log of target over base for each sample; None where they are not matched.
    """

    latents: Latents
    preferred: Tensor
    prompt_index: Tensor
    set_index: Tensor
    prompt_embeds: Tensor
    pooled_prompt_embeds: Tensor
    empty_prompt_embeds: Tensor
    empty_pooled: Tensor
    retained_latents: Latents
    retained_prompt_index: Tensor
    retained_generic: Tensor
    classes: Tensor | None = None
    target: Tensor | None = None
    guidance_scale: float = 1.0
    advantages: Tensor | None = None
    log_ratios: Tensor | None = None

    def __post_init__(self) -> None:
        n = len(self.latents)
        if n == 0 or len(self.latents.shape) != 4:
            raise InputError(
                f"latents must be [N, C, h, w] with N > 0, got {tuple(self.latents.shape)}; no preferences?"
            )
        r = len(self.retained_latents)
        if self.retained_latents.shape[1:] != self.latents.shape[1:]:
            wanted = ", ".join(map(str, self.latents.shape[1:]))
            raise InputError(f"retained_latents must be [R, {wanted}], got {tuple(self.retained_latents.shape)}")
        for name, size, dtype in (
            ("preferred", n, torch.bool),
            ("prompt_index", n, torch.int64),
            ("set_index", n, torch.int64),
            ("retained_prompt_index", r, torch.int64),
            ("retained_generic", r, torch.bool),
        ):
            tensor: Tensor = getattr(self, name)
            _check_vector(name, tensor, size, dtype)
        for name in ("advantages", "log_ratios"):
            if (wanted := getattr(self, name)) is not None:
                _check_vector(name, wanted, n, torch.float32)
        self._check_embeddings()
        self._check_sets()
        if (self.classes is None) != (self.target is None):
            raise InputError("classes and target go together: give both, or neither")
        if self.classes is not None and self.target is not None:
            reach = (int(self.classes.min()), int(self.classes.max())) if self.classes.shape == (n,) else None
            if reach is None or reach[0] < 0 or reach[1] >= len(self.target):
                raise InputError(
                    f"classes must be [{n}] within the target's {len(self.target)}, "
                    f"got {tuple(self.classes.shape)} reaching {reach}"
                )

    @cached_property
    def class_priors(self) -> Tensor:
        """[N] float32: the share that the reference gives, under a sample's prompt, to the sample's own class.

        Counted over the dispreferred images, which are what the reference samples, with half an image added to each
        class: a class that was not seen is rare, not impossible. Only with `classes`.
        """
        assert self.classes is not None
        assert self.target is not None
        counts = torch.full((len(self.prompt_embeds), len(self.target)), 0.5)
        sampled = ~self.preferred
        where = self.prompt_index[sampled], self.classes[sampled]
        counts.index_put_(where, torch.ones(int(sampled.sum())), accumulate=True)
        return (counts / counts.sum(1, keepdim=True))[self.prompt_index, self.classes]

    def _check_embeddings(self) -> None:
        embeds, pooled = self.prompt_embeds, self.pooled_prompt_embeds
        if embeds.shape[:1] != pooled.shape[:1]:
            raise InputError(f"{len(embeds)} prompt_embeds but {len(pooled)} pooled_prompt_embeds; give one per prompt")
        for name, full in (("empty_prompt_embeds", embeds), ("empty_pooled", pooled)):
            empty: Tensor = getattr(self, name)
            if empty.shape != (1, *full.shape[1:]):
                raise InputError(f"{name} must be {(1, *full.shape[1:])}, got {tuple(empty.shape)}")
        for name in ("prompt_index", "retained_prompt_index"):
            index: Tensor = getattr(self, name)
            if len(index) and (int(index.min()) < 0 or int(index.max()) >= len(embeds)):
                raise InputError(f"{name} reaches {int(index.max())}, but there are {len(embeds)} prompts")

    def _check_sets(self) -> None:
        names, pair = torch.unique(self.set_index, return_inverse=True)
        sides = (("preferred", self.preferred), ("dispreferred", ~self.preferred))
        for side, mask in sides if self.advantages is None else ():
            lacking = names[torch.bincount(pair[mask], minlength=len(names)) == 0].tolist()
            if lacking:
                raise InputError(f"set pairs {lacking[:5]} have no {side} sample; drop them or give both sides")
        first = torch.zeros_like(names).scatter_(0, pair, self.prompt_index)
        mixed = self.set_index[first[pair] != self.prompt_index].unique().tolist()
        if mixed:
            raise InputError(f"set pairs {mixed[:5]} mix prompts; both sets of a pair carry one caption")


def draw_pairs(
    data: PreferenceData, n: int, generator: torch.Generator, *, pairs_per_set: int = 1
) -> tuple[Tensor, Tensor]:
    """Draw n pairs with replacement: a pair of sets uniformly, then samples of each side uniformly.

    Args:
        data: The preferences.
        n: Number of pairs.
        generator: A CPU generator.
        pairs_per_set: How many pairs each chosen pair of sets gives; divides n.

    Returns:
        Rows of the preferred [n] and of the dispreferred [n] samples, int64; row i of both is from one pair of sets.
    """
    _, pair = torch.unique(data.set_index, return_inverse=True)
    chosen = torch.randint(int(pair.max()) + 1, (n // pairs_per_set,), generator=generator)
    chosen = chosen.repeat_interleave(pairs_per_set)
    sides = [mask.nonzero().squeeze(1) for mask in (data.preferred, ~data.preferred)]
    preferred, dispreferred = (_draw_within(rows, pair[rows], chosen, generator) for rows in sides)
    return preferred, dispreferred


def draw_groups(
    data: PreferenceData, n: int, generator: torch.Generator, *, pairs_per_set: int = 1
) -> tuple[Tensor, Tensor]:
    """Draw images of some groups, each group once before any comes again, and no image of a group twice.

    Args:
        data: With advantages.
        n: Half the number of images.
        generator: A CPU generator.
        pairs_per_set: Half the images of each chosen group; divides n.

    Returns:
        Rows [n] and [n] int64: row i of both is of one group, and so are `pairs_per_set` rows that follow each other.

    Raises:
        InputError: When a group has too few images.
    """
    names, group = torch.unique(data.set_index, return_inverse=True)
    n_groups = n // pairs_per_set
    orders = [torch.randperm(len(names), generator=generator) for _ in range(-(-n_groups // len(names)))]
    halves = []
    for number in torch.cat(orders)[:n_groups].tolist():
        members = (group == number).nonzero().squeeze(1)
        if len(members) < 2 * pairs_per_set:
            raise InputError(
                f"group {number} has {len(members)} images, fewer than the {2 * pairs_per_set} that pairs_per_set "
                f"{pairs_per_set} takes; sample more, or lower it"
            )
        chosen = members[torch.randperm(len(members), generator=generator)[: 2 * pairs_per_set]]
        halves.append(chosen.view(2, pairs_per_set))
    one, other = torch.cat(halves, dim=1)
    return one, other


def draw_retained(data: PreferenceData, n: int, generator: torch.Generator) -> Tensor:
    """Draw n retained images with replacement: generic or not at equal chances, then one of those uniformly.

    Returns:
        Rows of `retained_latents`, [n] int64.
    """
    kinds, kind = torch.unique(data.retained_generic, return_inverse=True)
    chosen = torch.randint(len(kinds), (n,), generator=generator)
    return _draw_within(torch.arange(len(kind)), kind, chosen, generator)


def _draw_within(rows: Tensor, group: Tensor, chosen: Tensor, generator: torch.Generator) -> Tensor:
    """A row of each chosen group, uniformly; `group` is that of each row, counted from 0, and none is empty."""
    rows = rows[torch.argsort(group, stable=True)]
    counts = torch.bincount(group)
    starts = counts.cumsum(0) - counts
    # float64: a float32 draw times the count could round up to the count itself
    within = (torch.rand(len(chosen), generator=generator, dtype=torch.float64) * counts[chosen]).long()
    return rows[starts[chosen] + within]


def _check_vector(name: str, tensor: Tensor, size: int, dtype: torch.dtype) -> None:
    if tensor.shape != (size,) or tensor.dtype != dtype:
        raise InputError(f"{name} must be [{size}] {dtype}, got {tuple(tensor.shape)} {tensor.dtype}")
