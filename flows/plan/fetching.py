"""What `popalign fetch` gets: what a configuration needs and is not there, the room it takes, and the work itself."""

import os
from collections import defaultdict
from collections.abc import Callable, Collection, Iterable
from dataclasses import dataclass
from pathlib import Path

from flows.plan.preflight import free_bytes, look_for, nearest_folder
from popalign_core.config import PipelineConfig
from popalign_core.downloads.file_records import hold_folder
from popalign_core.downloads.remote_files import Listing, home_of, list_source, lock_of
from popalign_core.downloads.transfer import bytes_there, fetch_listing
from popalign_core.errors import ConfigError, MissingWeightsError, PopAlignError, StoreError
from popalign_core.sources import GROUPS, HubFiles, Source
from tasks.common.needs import Need

OnPiece = Callable[[str, int, int], None]
"""As the progress of the command line takes it: label, done, total."""
_MIB = 2**20
_GIB = 2**30


@dataclass(frozen=True)
class FetchJob:
    """Something that is needed, not there, and can be fetched.

    Attributes:
        need: What needs it; of several the first.
        listing: Its files.
        n_bytes: How many are there still to come, as far as the server tells sizes.
    """

    need: Need
    listing: Listing
    n_bytes: int


@dataclass(frozen=True)
class FetchPlan:
    """What there is to do.

    Attributes:
        jobs: What is fetched.
        n_there: How many of the things that can be fetched are there.
        left: What is needed, not there, and cannot be fetched.
    """

    jobs: tuple[FetchJob, ...]
    n_there: int
    left: tuple[PopAlignError, ...]


def parse_groups(words: str | None) -> frozenset[str]:
    """Groups of sources from `model,scorers`; all when nothing is said.

    Raises:
        ConfigError: For an unknown one.
    """
    if words is None:
        return frozenset(GROUPS)
    asked = [word.strip() for word in words.split(",")]
    if unknown := sorted(set(asked) - set(GROUPS)):
        raise ConfigError(f"--what has unknown groups {unknown}; choose from {', '.join(GROUPS)}")
    return frozenset(asked)


def plan_fetch(needs: Iterable[Need], config: PipelineConfig, groups: Collection[str]) -> FetchPlan:
    """Ask where everything is that is needed and not there. Downloads nothing.

    Args:
        needs: As the preflight lists them.
        config: They are of.
        groups: Which are looked at.

    Raises:
        PopAlignError: When a server does not answer, or not as it should.
    """
    jobs, left, n_there = dict[str, FetchJob](), list[PopAlignError](), 0
    for need in needs:
        problem = look_for(need)
        if need.source is None:
            is_weights = isinstance(problem, MissingWeightsError) or need.what == f"model {config.model.name}"
            if problem is not None and is_weights and set(groups) == set(GROUPS):
                left.append(problem)
        elif need.source.group in groups:
            n_there += problem is None
            if problem is not None and _place(need.source) not in jobs:
                listing = list_source(need.source)
                n_bytes = sum(max(0, (file.size or 0) - bytes_there(file)) for file in listing.files)
                jobs[_place(need.source)] = FetchJob(need, listing, n_bytes)
    return FetchPlan(tuple(jobs.values()), n_there, tuple(left))


def check_room(jobs: Iterable[FetchJob]) -> None:
    """Refuse before the first byte what the disks do not hold.

    Raises:
        StoreError: With both figures.
    """
    needed, folders = defaultdict[int, int](int), dict[int, Path]()
    for job in jobs:
        folder = nearest_folder(home_of(job.listing.source))
        disk = os.stat(folder).st_dev
        needed[disk] += job.n_bytes
        folders.setdefault(disk, folder)
    for disk, folder in folders.items():
        free = free_bytes(folder)
        if needed[disk] > free:
            raise StoreError(
                f"{needed[disk] / _GIB:.1f} GiB are to be fetched, and the disk of {folder} has {free / _GIB:.1f} GiB "
                "left; make room, set HF_HOME or DEEPFACE_HOME to another disk, or fetch a part with --what"
            )


def fetch_jobs(jobs: Iterable[FetchJob], progress: OnPiece) -> None:
    """Fetch everything, and look whether it is there now.

    Args:
        jobs: As planned.
        progress: Told the MiB that are done, of how many.

    Raises:
        PopAlignError: That says what went wrong; the same call goes on from there.
    """
    jobs = tuple(jobs)
    tally = _Tally(sum(job.n_bytes for job in jobs), progress)
    for job in jobs:
        source = job.listing.source
        with hold_folder(lock_of(source)):
            if look_for(job.need) is None:
                continue  # another process was faster
            fetch_listing(job.listing, tally.add)
        if (problem := look_for(job.need)) is not None:
            raise type(problem)(f"{job.need.what} was downloaded completely, but cannot be used: {problem}")


class _Tally:
    """Bytes that came, shown as MiB; what must come again makes the whole more."""

    def __init__(self, n_bytes: int, progress: OnPiece) -> None:
        self._total, self._done, self._said, self._progress = n_bytes, 0, -1, progress

    def add(self, n: int) -> None:
        self._done += max(n, 0)
        self._total = max(self._total + max(-n, 0), self._done)
        if self._said != (done := self._done // _MIB) or self._done == self._total:
            self._said = done
            total = -(-self._total // _MIB)
            self._progress("fetch, MiB", total if self._done == self._total else done, total)


def _place(source: Source) -> str:
    if isinstance(source, HubFiles) and source.place is None:
        return f"{source.repo}@{source.revision}"
    return str(source.place)
