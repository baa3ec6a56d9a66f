"""What `popalign fetch` shows before it asks: sizes, places, and what the licenses forbid."""

from collections.abc import Iterator
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from flows.plan.fetching import FetchJob, FetchPlan

_UNITS = (("GiB", 2**30), ("MiB", 2**20), ("KiB", 2**10))


def fetch_lines(plan: "FetchPlan") -> Iterator[str]:
    """A few lines for each thing that is missing, and what all of it is together."""
    for job in plan.jobs:
        yield from _job_lines(job)
    n_files = sum(len(job.listing.files) for job in plan.jobs)
    n_bytes = sum(job.n_bytes for job in plan.jobs)
    if plan.jobs:
        yield f"{size_text(n_bytes)} to download, {n_files} file(s); {plan.n_there} other item(s) already present"
    else:
        yield f"nothing to download: {plan.n_there} item(s) present"


def size_text(n_bytes: int) -> str:
    """`6.5 GiB`."""
    for unit, size in _UNITS:
        if n_bytes >= size:
            return f"{n_bytes / size:.1f} {unit}"
    return f"{n_bytes} bytes"


def _job_lines(job: "FetchJob") -> Iterator[str]:
    from popalign_core.downloads.remote_files import home_of
    from popalign_core.sources import HubFiles

    listing, source = job.listing, job.listing.source
    unknown = " or more (a server does not say)" if any(file.size is None for file in listing.files) else ""
    yield f"{job.need.what}: {size_text(job.n_bytes)}{unknown}, {len(listing.files)} file(s)"
    if isinstance(source, HubFiles):
        yield f"  from     {source.repo} at {listing.commit}"
    else:
        yield f"  from     {listing.files[0].url}"
    yield f"  to       {source.place or home_of(source)}"
    said = listing.license
    yield f"  license  {said.name}{f': {said.terms}' if said.terms else ''} ({said.url})"
