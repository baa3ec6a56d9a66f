"""What became of chains: how many steps each took, and how near the target its set came by what a classifier reads."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import pandas as pd

from popalign_core.config.review import CurateConfig
from popalign_core.preferences.chain import Chain
from popalign_core.preferences.target import Target
from popalign_core.review.curation_chains import Seen, measure_set

ENDS = ("finished", "given up", "going on")
_COLUMNS = ["prompt", "end", "n_accepted", "n_undone", "seconds", "discrepancy_start", "discrepancy_end"]


@dataclass(frozen=True)
class Course:
    """A chain as it went.

    Attributes:
        prompt: Its text.
        end: One of `ENDS`.
        chains: The chain at its start and after each step.
        seen: What the classifier read off its images.
        seconds: Of all steps.
    """

    prompt: str
    end: str
    chains: Sequence[Chain]
    seen: Seen
    seconds: float


@dataclass(frozen=True)
class CurationResults:
    """Tables of a study.

    Attributes:
        sets: prompt, end, n_accepted, n_undone, seconds, discrepancy_start, discrepancy_end; a row a chain.
        path: Mean discrepancy of the finished sets after 0, 1, 2, ... steps; a set stays where it ended.
        floor: The smallest discrepancy a set of this size can have.
    """

    sets: pd.DataFrame
    path: list[float]
    floor: float


def evaluate_courses(courses: Sequence[Course], config: CurateConfig) -> CurationResults:
    """All results."""
    traces = [[measure_set(chain.members, course.seen, config.axes) for chain in course.chains] for course in courses]
    rows = [
        {
            "prompt": course.prompt,
            "end": course.end,
            "n_accepted": course.chains[-1].n_accepted,
            "n_undone": course.chains[-1].n_undone,
            "seconds": course.seconds,
            "discrepancy_start": trace[0],
            "discrepancy_end": trace[-1],
        }
        for course, trace in zip(courses, traces, strict=True)
    ]
    finished = [trace for course, trace in zip(courses, traces, strict=True) if course.end == ENDS[0]]
    floor = Target(config.axes).nearest(config.set_size, "marginal")
    return CurationResults(pd.DataFrame(rows, columns=_COLUMNS), _mean_path(finished), floor)


def _mean_path(traces: Sequence[Sequence[float]]) -> list[float]:
    """[longest]: the mean over chains; sets of which nothing could be read are left out."""
    known = [trace for trace in traces if not np.isnan(trace).any()]
    length = max(map(len, known), default=0)
    padded = [[*trace, *[trace[-1]] * (length - len(trace))] for trace in known]
    means: list[float] = np.mean(padded, axis=0).tolist() if padded else []
    return means
