"""The app that shows what can be read of a store's runs; it writes nothing."""

import hmac
from html import escape
from pathlib import PurePosixPath
from typing import Annotated, BinaryIO

from fastapi import Depends, FastAPI, HTTPException, Request
from fastapi.responses import HTMLResponse, Response, StreamingResponse
from fastapi.security import HTTPBasic, HTTPBasicCredentials
from starlette.exceptions import HTTPException as StarletteHTTPException

from flows.review.guard import HEADERS, Guard
from flows.review.server_settings import ReviewSettings
from popalign_core.errors import PopAlignError
from popalign_core.report.document import html_page
from popalign_core.report.runs_page import build_runs_page
from storage.readable_runs import ReadableRuns, iter_blocks
from storage.reviews.passwords import hide_password
from tasks.publishing.published_runs import PublishedRuns

PAGES_HEADERS = HEADERS | {
    # reports bring styles and images along and have no scripts
    "Content-Security-Policy": "default-src 'none'; img-src data:; style-src 'unsafe-inline'; form-action 'none'; "
    "base-uri 'none'; frame-ancestors 'none'"
}
_TYPES = {
    ".html": "text/html; charset=utf-8",
    ".md": "text/plain; charset=utf-8",  # browsers save what is called text/markdown
    ".json": "application/json",
    ".csv": "text/csv; charset=utf-8",
    ".parquet": "application/vnd.apache.parquet",
}
_CHALLENGE = {"WWW-Authenticate": 'Basic realm="PopAlign: any name, and the token", charset="UTF-8"'}
_METHODS = ["GET", "HEAD"]


def make_pages_app(store: ReadableRuns, settings: ReviewSettings) -> FastAPI:
    """The app on a store."""
    runs, shown = PublishedRuns(store), hide_password(store.path)

    def check_token(given: Annotated[HTTPBasicCredentials | None, Depends(HTTPBasic(auto_error=False))]) -> None:
        if settings.token is None:
            return
        if given is None or not hmac.compare_digest(given.password.encode(), settings.token.encode()):
            raise HTTPException(401, "A token is required: enter it as the password, with any name.", _CHALLENGE)

    checks = [Depends(check_token)]
    app = FastAPI(docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False, dependencies=checks)

    @app.api_route("/", methods=_METHODS)
    def all_runs() -> HTMLResponse:
        return HTMLResponse(build_runs_page(runs.list_runs(), shown, runs.leaderboard_files()))

    @app.api_route("/{file}", methods=_METHODS)
    def file_of_store(request: Request, file: str) -> Response:
        if file not in runs.leaderboard_files():
            raise HTTPException(404, "There is nothing here.")
        return _answer(request, file, store.open(None, file))

    @app.api_route("/runs/{run}/{file}", methods=_METHODS)
    def file_of_run(request: Request, run: str, file: str) -> Response:
        return _answer(request, file, store.open(run, file))

    app.add_middleware(Guard, settings=settings, headers=PAGES_HEADERS, is_any_host=settings.token is not None)
    app.add_exception_handler(StarletteHTTPException, _refuse)
    app.add_exception_handler(PopAlignError, _explain)
    return app


def _answer(request: Request, file: str, found: tuple[int, BinaryIO] | None) -> Response:
    """A file, in blocks: reports hold images and may be large."""
    if found is None:
        raise HTTPException(404, "There is no such file. A run that is not complete has no report yet.")
    size, opened = found
    suffix = PurePosixPath(file).suffix
    headers = {"Content-Length": str(size)}
    if suffix == ".parquet":
        headers["Content-Disposition"] = "attachment"
    if request.method == "HEAD":
        opened.close()
        return Response(headers=headers, media_type=_TYPES[suffix])
    return StreamingResponse(iter_blocks(opened), headers=headers, media_type=_TYPES[suffix])


async def _refuse(request: Request, error: Exception) -> Response:
    assert isinstance(error, StarletteHTTPException)
    return _say(str(error.detail), error.status_code, dict(error.headers or {}))


async def _explain(request: Request, error: Exception) -> Response:
    return _say(str(error), 503, {})


def _say(text: str, status: int, headers: dict[str, str]) -> HTMLResponse:
    head = f'<p>{escape(text)}</p><p><a href="/">All runs</a></p>'
    return HTMLResponse(html_page("PopAlign", head, []), status, headers)
