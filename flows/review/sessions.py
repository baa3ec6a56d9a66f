"""Sessions: a rater has a signed link and then a cookie, the operator a token. Every form is signed too."""

import hmac
import time
from dataclasses import dataclass
from typing import Annotated, Any
from urllib.parse import parse_qsl

from fastapi import Depends, HTTPException, Request, Response
from itsdangerous import BadSignature, URLSafeSerializer, URLSafeTimedSerializer

from flows.review.guard import Allowance
from flows.review.server_settings import ReviewSettings
from popalign_core.errors import InputError
from storage.reviews.review_tables import Study
from storage.reviews.votes import ReviewDatabase

RATER_COOKIE = "rater"
OPERATOR_COOKIE = "operator"
_OPERATOR_SESSION_S = 7 * 24 * 3600
_FORM_S = 24 * 3600
_NO_LINK = "Please open the link you were given."
_NOTHING = "There is nothing here."


@dataclass(frozen=True)
class Review:
    """What every page needs."""

    database: ReviewDatabase
    settings: ReviewSettings
    requests: Allowance


@dataclass(frozen=True)
class RaterSession:
    """A rater who is let in, and the study as it was made: its instructions may have changed since."""

    study: Study
    rater_id: str


def review_of(request: Request) -> Review:
    """What the app was made with."""
    found: Review = request.app.state.review
    return found


def rater_session(request: Request, name: str) -> RaterSession:
    """The rater whose cookie came with the request.

    Raises:
        HTTPException: 401 without a valid cookie of this study, 403 when the rater is closed, 429 after too many
            requests.
    """
    return admit(request, name, request.cookies.get(RATER_COOKIE, ""), "session")


def admit(request: Request, name: str, token: str, purpose: str) -> RaterSession:
    """The rater of a token signed for a purpose; raises as `rater_session`."""
    session = read_token(request, name, token, purpose)
    found = review_of(request).database.find_rater(session.rater_id)
    if found is None or found[0] != name:
        raise HTTPException(401, _NO_LINK)
    if found[1]:
        raise HTTPException(403, "Your part in this study has ended. Thank you.")
    return session


def onlooker(request: Request, name: str) -> None:
    """As `rater_session`, but also for raters whose part has ended; does not read the database."""
    read_token(request, name, request.cookies.get(RATER_COOKIE, ""), "session")


def read_token(request: Request, name: str, token: str, purpose: str) -> RaterSession:
    """Whom a token was signed for; 404, 401 and 429 as `rater_session`."""
    review = review_of(request)
    try:
        study = review.database.cached_study(name)
    except InputError:
        raise HTTPException(404, _NOTHING) from None
    try:
        rater_id = str(signer(study, purpose).loads(token))
    except BadSignature:
        raise HTTPException(401, _NO_LINK) from None
    if not review.requests.take(rater_id):
        raise HTTPException(429, "That was quick: please wait a moment, then load the page again.")
    return RaterSession(study, rater_id)


def find_study(request: Request, name: str) -> Study:
    """A study by the name in the address; 404 when there is none, without telling which there are."""
    try:
        return review_of(request).database.study(name)
    except InputError:
        raise HTTPException(404, _NOTHING) from None


def signer(study: Study, purpose: str) -> URLSafeSerializer:
    """Signs for one purpose with the study's secret; what was signed for another is refused."""
    return URLSafeSerializer(study.secret, salt=purpose)


def invitation(study: Study, rater_id: str, base_url: str) -> str:
    """The link of a rater."""
    return f"{base_url}/s/{study.name}/join/{signer(study, 'invitation').dumps(rater_id)}"


def remember(response: Response, review: Review, name: str, value: str, path: str) -> None:
    """Set a cookie that no script can read and no other site's form is sent with."""
    is_secure = review.settings.base_url.startswith("https://")
    response.set_cookie(name, value, path=path, httponly=True, samesite="lax", secure=is_secure, max_age=90 * 24 * 3600)


def sign(session: RaterSession, purpose: str, *values: int | str) -> str:
    """What a form carries: whose it is, and what it is about."""
    return str(signer(session.study, purpose).dumps([session.rater_id, *values]))


def sign_seen(session: RaterSession, purpose: str, *values: int | str) -> str:
    """As `sign`, of a page that is answered: with the time since when it has been seen, last."""
    return str(signer(session.study, purpose).dumps([session.rater_id, *values, time.time()]))


def open_form(session: RaterSession, purpose: str, form: dict[str, str]) -> list[Any]:
    """What follows the rater's id in a form's token.

    Raises:
        HTTPException: 403 when the token is not one of this rater's pages.
    """
    try:
        signed: list[Any] = signer(session.study, purpose).loads(form.get("token", ""))
    except BadSignature:
        signed = [None]
    if signed[0] != session.rater_id:
        raise HTTPException(403, "This form did not come from your page; load the page again.")
    return signed[1:]


def operator(request: Request) -> None:
    """Let the operator pass: with a token only after log-in, without one anybody on this machine.

    Raises:
        HTTPException: 401.
    """
    review = review_of(request)
    if review.settings.token is None:
        return
    cookie = request.cookies.get(OPERATOR_COOKIE, "")
    try:
        _timed(review, "operator").loads(cookie, max_age=_OPERATOR_SESSION_S)
    except BadSignature:
        raise HTTPException(401, "The operator's token is required.") from None


def log_in(review: Review, token: str) -> str:
    """The operator's cookie.

    Raises:
        HTTPException: 401 for a wrong token.
    """
    if not hmac.compare_digest(token.encode(), (review.settings.token or "").encode()):
        raise HTTPException(401, "That is not the token.")
    return str(_timed(review, "operator").dumps("in"))


def sign_form(review: Review, action: str) -> str:
    """What an operator's form carries; good for one action, for a day."""
    return str(_timed(review, f"form {action}").dumps("form"))


def check_form(review: Review, action: str, form: dict[str, str]) -> None:
    """Refuse a form that did not come from one of the operator's pages.

    Raises:
        HTTPException: 403.
    """
    try:
        _timed(review, f"form {action}").loads(form.get("token", ""), max_age=_FORM_S)
    except BadSignature:
        raise HTTPException(403, "This form did not come from your page; load the page again.") from None


async def read_form(request: Request) -> dict[str, str]:
    """The fields of a plain form.

    Raises:
        HTTPException: 415 for anything else.
    """
    if not request.headers.get("content-type", "").startswith("application/x-www-form-urlencoded"):
        raise HTTPException(415, "Only plain forms are read here.")
    try:
        return dict(parse_qsl((await request.body()).decode(), max_num_fields=20))
    except ValueError:
        raise HTTPException(400, "The form cannot be read.") from None


def _timed(review: Review, purpose: str) -> URLSafeTimedSerializer:
    return URLSafeTimedSerializer(review.settings.key, salt=purpose)


Form = Annotated[dict[str, str], Depends(read_form)]
Session = Annotated[RaterSession, Depends(rater_session)]
