"""The app, put together, and served."""

from contextlib import asynccontextmanager
from typing import TYPE_CHECKING

from fastapi import FastAPI, Request
from fastapi.responses import Response
from fastapi.staticfiles import StaticFiles
from starlette.exceptions import HTTPException

from flows.review import curator_pages, operator_pages, rater_pages
from flows.review.guard import Allowance, Guard
from flows.review.server_settings import ReviewSettings
from flows.review.serving import listen, serve_app
from flows.review.sessions import Review
from flows.review.templating import STATIC, message
from popalign_core.errors import InputError, PopAlignError
from storage.reviews.votes import ReviewDatabase

if TYPE_CHECKING:
    from collections.abc import AsyncIterator


def make_app(database_url: str, settings: ReviewSettings) -> FastAPI:
    """The review app on a database.

    Raises:
        StoreError: When the database cannot be opened.
    """
    database = ReviewDatabase(database_url)

    @asynccontextmanager
    async def lifespan(app: FastAPI) -> "AsyncIterator[None]":
        yield
        database.close()

    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, lifespan=lifespan)
    app.state.review = Review(database, settings, Allowance(settings.rate, settings.burst))
    for router in (rater_pages.router, curator_pages.router, operator_pages.entrance, operator_pages.router):
        app.include_router(router)
    app.mount("/static", StaticFiles(directory=STATIC))
    app.add_middleware(Guard, settings=settings)
    app.add_exception_handler(HTTPException, _refuse)
    app.add_exception_handler(PopAlignError, _explain)
    return app


def serve(database_url: str, settings: ReviewSettings) -> None:
    """Serve until interrupted.

    Raises:
        ConfigError: When it cannot listen there.
        StoreError: When the database cannot be opened.
    """
    with listen(settings) as listening:
        serve_app(make_app(database_url, settings), settings, listening)


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, HTTPException)
    is_operators = error.status_code == 401 and not request.url.path.startswith("/s/")
    return message(str(error.detail), error.status_code, back="/login" if is_operators else None)


async def _explain(request: Request, error: Exception) -> Response:
    # What the project's errors say is for the operator; a rater is told that it was not their fault.
    if request.url.path.startswith("/s/"):
        return message("Something went wrong on our side. Please try again in a minute.", 503)
    return message(str(error), 400 if isinstance(error, InputError) else 503)
