"""Prompts that others wrote, kept or rejected with a reason."""

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field

import pandas as pd

from popalign_core.config import Axis
from popalign_core.errors import InputError
from popalign_core.prompts.checks import MAX_SCENE_WORDS, canonical, prompt_fault, subject_fault
from popalign_core.prompts.similar import SimilarTexts, heads

Lists = Iterable[tuple[str, Sequence[str]]]
"""Names of lists, and their prompts."""


@dataclass
class Sieve:
    """What is asked of listed prompts, and what was rejected, as (text, reason).

    Attributes:
        axes: The attributes no neutral prompt may name.
        one_person: Whether a neutral prompt may show one only.
        rejected: So far.
    """

    axes: Sequence[Axis]
    one_person: bool = True
    rejected: list[tuple[str, str]] = field(default_factory=list)

    def subjects(self, lists: Lists, taken: Sequence[str] = (), held_out: Sequence[str] = ()) -> list[str]:
        """The usable subjects of neutral prompts: those that `checks.subject_fault` finds nothing about.

        Args:
            lists: Each must hold one at least.
            taken: Subjects that are there already.
            held_out: Subjects kept for the other side: for evaluation, or for training where these evaluate.

        Raises:
            InputError: When all prompts of a list are rejected.
        """
        there, kept_apart = SimilarTexts(taken), SimilarTexts(heads(held_out))

        def fault(text: str) -> str | None:
            if not text:
                return "empty"
            return subject_fault(
                text, self.axes, there, kept_apart, max_words=MAX_SCENE_WORDS, one_person=self.one_person
            )

        return self._sift(lists, fault, there.add)

    def prompts(self, lists: Lists, held_out: Sequence[str] = ()) -> list[str]:
        """The prompts that can be used as they are; see `checks.prompt_fault`.

        Args:
            lists: Each must hold one at least.
            held_out: Prompts of the other split.

        Raises:
            InputError: When all prompts of a list are rejected.
        """
        there, kept_apart = set[str](), set(map(canonical, held_out))

        def fault(text: str) -> str | None:
            return "held_out" if canonical(text) in kept_apart else prompt_fault(text, there)

        return self._sift(lists, fault, lambda text: there.add(canonical(text)))

    def table(self) -> pd.DataFrame:
        """The rejected ones, as table `rejected`."""
        return pd.DataFrame(self.rejected, columns=["text", "reason"])

    def _sift(self, lists: Lists, fault: Callable[[str], str | None], keep: Callable[[str], None]) -> list[str]:
        kept = list[str]()
        for name, texts in lists:
            n_kept, n_rejected = len(kept), len(self.rejected)
            for text in texts:
                text = " ".join(text.split())
                if (reason := fault(text)) is None:
                    keep(text)
                    kept.append(text)
                else:
                    self.rejected.append((text[:_SHOWN], reason))
            if len(kept) == n_kept:
                raise _none_left(name, [reason for _, reason in self.rejected[n_rejected:]])
        return kept


_SHOWN = 200


def _none_left(name: str, reasons: Sequence[str]) -> InputError:
    hint = "; for pictures of several people set prompts.one_person = false" if "several_people" in reasons else ""
    return InputError(
        f"none of the {len(reasons)} prompt(s) in {name} can be used: {dict(Counter(reasons))}; a neutral one is a "
        f"phrase in English for somebody, naming no identity{hint}"
    )
