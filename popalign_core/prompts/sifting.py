"""Prompts that others wrote, kept or rejected with a reason."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field, replace

import pandas as pd

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.prompts.carriers import Listed, separate
from popalign_core.prompts.checks import MAX_SCENE_WORDS, canonical, prompt_fault, subject_fault
from popalign_core.prompts.similar import SimilarTexts, heads
from popalign_core.prompts.words import identity_words_in

Lists = Iterable[tuple[str, Sequence[str]]]
"""Names of lists, and their prompts."""


@dataclass
class Sieve:
    """What is asked of listed prompts, and what was rejected, as (text, reason).

    Attributes:
        axes: The attributes no neutral prompt may name.
        one_person: Whether a neutral prompt may show one only.
        rejected: So far.
        carriers: Subject -> the carrier it was listed with, of the subjects kept that have one of their own.
    """

    axes: Sequence[Axis]
    one_person: bool = True
    rejected: list[tuple[str, str]] = field(default_factory=list)
    carriers: dict[str, str] = field(default_factory=dict)

    def subjects(self, lists: Lists, taken: Sequence[str] = (), held_out: Sequence[str] = ()) -> list[str]:
        """The usable subjects of neutral prompts: those that `checks.subject_fault` finds nothing about.

        Of whole prompts it is who is shown; their carriers are in `carriers`.

        Args:
            lists: Each must hold one at least.
            taken: Subjects that are there already.
            held_out: Subjects kept for the other side: for evaluation, or for training where these evaluate.

        Raises:
            InputError: When all prompts of a list are rejected.
        """
        there, kept_apart = SimilarTexts(taken), SimilarTexts(heads(held_out))

        def fault(entry: Listed) -> str | None:
            if not entry.subject:
                return "empty"
            if entry.carrier is not None and identity_words_in(entry.carrier, self.axes):
                return "names_identity"
            return subject_fault(
                entry.subject, self.axes, there, kept_apart, max_words=MAX_SCENE_WORDS, one_person=self.one_person
            )

        def keep(entry: Listed) -> None:
            there.add(entry.subject)
            if entry.carrier is not None:
                self.carriers[entry.subject] = entry.carrier

        return self._sift(((name, _listed(texts)) for name, texts in lists), fault, keep)

    def prompts(self, lists: Lists, held_out: Sequence[str] = ()) -> list[str]:
        """The prompts that can be used as they are; see `checks.prompt_fault`.

        Args:
            lists: Each must hold one at least.
            held_out: Prompts of the other split.

        Raises:
            InputError: When all prompts of a list are rejected.
        """
        there, kept_apart = set[str](), set(map(canonical, held_out))

        def fault(entry: Listed) -> str | None:
            return "held_out" if canonical(entry.text) in kept_apart else prompt_fault(entry.text, there)

        entries = ((name, [Listed(text, text) for text in map(_spaced, texts)]) for name, texts in lists)
        return self._sift(entries, fault, lambda entry: there.add(canonical(entry.text)))

    def table(self) -> pd.DataFrame:
        """The rejected ones, as table `rejected`."""
        return pd.DataFrame(self.rejected, columns=["text", "reason"])

    def _sift(
        self,
        lists: Iterable[tuple[str, Sequence[Listed]]],
        fault: Callable[[Listed], str | None],
        keep: Callable[[Listed], None],
    ) -> list[str]:
        kept = list[str]()
        for name, entries in lists:
            n_kept, n_rejected = len(kept), len(self.rejected)
            for entry in entries:
                if (reason := fault(entry)) is None:
                    keep(entry)
                    kept.append(entry.subject)
                else:
                    self.rejected.append((entry.text[:_SHOWN], reason))
            if len(kept) == n_kept:
                raise _none_left(name, [reason for _, reason in self.rejected[n_rejected:]])
        return kept


_SHOWN = 200
_HINTS = {
    "several_people": "; for images of several people set prompts.one_person = false",
    "whole_prompt": "; a whole prompt must name its carrier and then who is shown, as 'a photo of a baker' does: "
    "begin them so, or list subjects alone and set prompts.carrier",
}


def _spaced(text: str) -> str:
    return " ".join(text.split())


def _listed(texts: Sequence[str]) -> list[Listed]:
    return [replace(entry, subject=entry.subject.removesuffix(".").rstrip()) for entry in separate(texts)]


def _none_left(name: str, reasons: Sequence[str]) -> InputError:
    hints = "".join(hint for reason, hint in _HINTS.items() if reason in reasons)
    return InputError(
        f"none of the {len(reasons)} prompt(s) in {name} can be used: {dict(Counter(reasons))}; a neutral one is a "
        f"phrase in English for somebody, naming no identity{hints}"
    )
