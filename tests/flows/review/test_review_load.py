"""Fifty raters at once: what is acknowledged is kept, whatever happens to the server; pages come quickly."""

import asyncio
import os
import random
import re
import time
from pathlib import Path

import httpx
import numpy as np
import pytest
from review_server import ReviewServer
from study_worlds import make_study

from flows.review.sessions import signer
from popalign_core.config.review import StudyConfig
from storage.reviews.review_tables import CHOICES, Rater
from storage.reviews.votes import ReviewDatabase

pytestmark = pytest.mark.slow

N_RATERS = 50
CONFIG = StudyConfig(n_raters=N_RATERS, n_checks=4)


class ScriptedRater:
    """Loads a page and its pictures, thinks, answers; asks again until the server acknowledges.

    Attributes:
        acknowledged: Place in the plan -> the answer that the server has confirmed.
        seconds: Of each page, from asking to having all of it.
    """

    def __init__(self, number: int, cookie: str, client: httpx.AsyncClient, think_s: float) -> None:
        self._random, self._client, self._think_s = random.Random(number), client, think_s
        self._headers = {"cookie": f"rater={cookie}"}
        self._seen: set[str] = set()
        self.acknowledged: dict[int, str] = {}
        self.seconds: list[float] = []

    async def work(self) -> None:
        """Answer everything."""
        await asyncio.sleep(self._random.uniform(0, self._think_s))
        while (page := await self._page()) is not None:
            for address in re.findall(r"/s/study/pictures/[0-9a-f]+", page):
                if address not in self._seen:
                    self._seen.add(address)
                    await self._until_answered("GET", address)
            await asyncio.sleep(self._random.uniform(0.5, 1.5) * self._think_s)
            await self._answer(page)

    async def _page(self) -> str | None:
        start = time.perf_counter()
        response = await self._until_answered("GET", "/s/study/judge")
        self.seconds.append(time.perf_counter() - start)
        return response.text if response.status_code == 200 else None

    async def _answer(self, page: str) -> None:
        token = re.search(r'name="token" value="([^"]+)"', page)
        number = re.search(r'class="count">(\d+) of', page)
        assert token is not None
        assert number is not None
        choice = self._random.choice(CHOICES)
        response = await self._until_answered("POST", "/s/study/judge", {"token": token[1], "choice": choice})
        assert response.status_code == 303, response.text
        self.acknowledged[int(number[1]) - 1] = choice

    async def _until_answered(self, method: str, path: str, data: dict[str, str] | None = None) -> httpx.Response:
        while True:
            try:
                response = await self._client.request(method, path, data=data, headers=self._headers)
            except httpx.TransportError:  # the server was killed
                await asyncio.sleep(0.05)
                continue
            assert response.status_code < 500, response.text
            return response


def make_world(folder: Path) -> tuple[ReviewDatabase, list[Rater], list[str]]:
    database, study, raters = make_study(folder, CONFIG, n_prompts=20, n_raters=N_RATERS)
    return database, raters, [str(signer(study, "session").dumps(rater.rater_id)) for rater in raters]


def stored(database: ReviewDatabase, raters: list[Rater]) -> list[list[tuple[int, str]]]:
    """For each rater, place and answer of every vote; a vote that is there twice would be there twice."""
    votes: dict[str, list[tuple[int, str]]] = {rater.rater_id: [] for rater in raters}
    for vote, asked, _ in database.votes("study"):
        votes[asked.rater_id].append((asked.position, vote.choice))
    return [votes[rater.rater_id] for rater in raters]


def test_ten_kills_lose_no_acknowledged_vote(tmp_path: Path) -> None:
    database, raters, cookies = make_world(tmp_path)
    lost: list[tuple[int, str]] = []

    async def run(server: ReviewServer) -> list[ScriptedRater]:
        limits = httpx.Limits(max_connections=N_RATERS)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:
            scripted = [ScriptedRater(number, cookie, client, 0.4) for number, cookie in enumerate(cookies)]
            work = [asyncio.create_task(rater.work()) for rater in scripted]
            for number in range(10):
                before = sum(len(rater.acknowledged) for rater in scripted)
                while sum(len(rater.acknowledged) for rater in scripted) < before + 50:
                    await asyncio.sleep(0.01)  # the kill comes in the middle of voting
                await asyncio.sleep(random.Random(number).uniform(0, 0.5))
                confirmed = [dict(rater.acknowledged) for rater in scripted]
                server.kill()
                for acknowledged, held in zip(confirmed, stored(database, raters), strict=True):
                    lost.extend(set(acknowledged.items()) - set(held))
                await asyncio.to_thread(server.start)
            assert not all(task.done() for task in work), "the kills came too late to matter"
            await asyncio.gather(*work)
            return scripted

    with ReviewServer(f"sqlite:///{tmp_path / 'reviews.sqlite'}") as server:
        scripted = asyncio.run(run(server))
    assert lost == []
    assert stored(database, raters) == [sorted(rater.acknowledged.items()) for rater in scripted]
    assert database.count_votes("study") == N_RATERS * (20 * 2 + 4)


def test_pages_come_quickly_to_fifty_raters(tmp_path: Path) -> None:
    """Each answers every two seconds or so, faster than people do, and loads every picture once."""
    load, n_cores = os.getloadavg()[0], os.cpu_count() or 1
    if load > n_cores:
        pytest.skip(f"the machine is busy (load {load:.1f} on {n_cores} cores): this would measure the others")
    _, _, cookies = make_world(tmp_path)

    async def run(server: ReviewServer) -> list[ScriptedRater]:
        limits = httpx.Limits(max_connections=N_RATERS)
        async with httpx.AsyncClient(base_url=server.url, limits=limits, timeout=30) as client:
            scripted = [ScriptedRater(number, cookie, client, 2.0) for number, cookie in enumerate(cookies)]
            await asyncio.gather(*(rater.work() for rater in scripted))
            return scripted

    with ReviewServer(f"sqlite:///{tmp_path / 'reviews.sqlite'}") as server:
        seconds = np.concatenate([rater.seconds for rater in asyncio.run(run(server))])
    assert len(seconds) == N_RATERS * (20 * 2 + 4 + 1)
    shares = dict(zip((50, 95, 99), np.percentile(seconds, [50, 95, 99]).round(4).tolist(), strict=True))
    assert shares[95] < 0.150, shares
