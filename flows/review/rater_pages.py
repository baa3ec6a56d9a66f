"""A rater's pages: the way in, the instructions, one question at a time, undo, the end."""

import time
from typing import Any

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from flows.review.sessions import (
    RATER_COOKIE,
    Form,
    Session,
    admit,
    find_study,
    onlooker,
    open_form,
    remember,
    review_of,
    sign,
    sign_seen,
    signer,
)
from flows.review.templating import markdown, message, page
from popalign_core.config.review import CANNOT_TELL, CurateConfig, LabelConfig, StudyConfig
from popalign_core.review.screen_images import MEDIA_TYPE
from storage.reviews.review_tables import ANSWER_PREFIX, CHOICES
from storage.reviews.votes import Turn
from tasks.studies.study_records import completion_code, parse_study

router = APIRouter(prefix="/s/{name}")
_CLASS_KEYS = "123456789abcdefghijklmnopqrstvwxyz"
"""Of the classes of a label question; 0 is for who cannot tell, U undoes."""


@router.get("/join/{token}")
def join(request: Request, name: str, token: str) -> Response:
    """Turn a link into a session; the link itself stays out of what follows."""
    session = admit(request, name, token, "invitation")
    response = _go(f"/s/{name}")
    value = signer(session.study, "session").dumps(session.rater_id)
    remember(response, review_of(request), RATER_COOKIE, str(value), f"/s/{name}")
    return response


@router.get("")
def welcome(request: Request, name: str, session: Session) -> HTMLResponse:
    """The instructions, and how far the rater has come."""
    turn = review_of(request).database.turn(session.rater_id)
    text, kind = markdown(find_study(request, name).instructions), parse_study(session.study).kind
    return page("welcome.html", name=name, turn=turn, kind=kind, instructions=text)


@router.get("/judge")
def judge(request: Request, name: str, session: Session) -> Response:
    """The next question; of sets to curate, the way to them."""
    database, config = review_of(request).database, parse_study(session.study)
    turn = database.turn(session.rater_id)
    if turn is None:
        return _go(f"/s/{name}/done")
    if isinstance(config, CurateConfig):
        return _go(f"/s/{name}/curate")
    return page(
        f"{config.kind}.html",
        name=name,
        turn=turn,
        **(_pair_context(turn, config) if isinstance(config, StudyConfig) else _picture_context(turn, config)),
        token=sign_seen(session, "answer", turn.asked.asked_id, turn.asked.question),
        undo_token=sign(session, "undo", turn.last.asked_id) if turn.last else None,
    )


@router.post("/judge")
def answer(request: Request, name: str, session: Session, form: Form) -> Response:
    """Store an answer. The same answer sent twice is one; another one to the same question is refused."""
    asked_id, question, since = open_form(session, "answer", form)
    choice = form.get("choice", "")
    if choice not in _choices(parse_study(session.study), question):
        raise HTTPException(400, "That is not one of the answers; load the page again.")
    seconds = max(0.0, time.time() - since)
    if not review_of(request).database.vote(session.rater_id, asked_id, choice, seconds):
        return message(
            "You have already answered this question differently. Your first answer stands; to change it, continue "
            "and choose “Undo”.",
            409,
            back=f"/s/{name}/judge",
        )
    return _go(f"/s/{name}/judge")


@router.post("/undo")
def undo(request: Request, name: str, session: Session, form: Form) -> Response:
    """Take the last answer back; sent twice, it takes back no more than one."""
    (asked_id,) = open_form(session, "undo", form)
    review_of(request).database.undo(session.rater_id, asked_id)
    return _go(f"/s/{name}/judge")


@router.get("/done")
def done(request: Request, name: str, session: Session) -> Response:
    """The end, with the completion code, for raters who have answered everything."""
    database = review_of(request).database
    if database.turn(session.rater_id) is not None:
        return _go(f"/s/{name}/judge")
    last = database.last_vote(session.rater_id)
    return page(
        "done.html",
        name=name,
        code=completion_code(session.study, session.rater_id),
        undo_token=sign(session, "undo", last.asked_id) if last else None,
    )


@router.get("/pictures/{picture_id}")
def picture(request: Request, name: str, picture_id: str) -> Response:
    """A picture of the study by its id, which never changes."""
    onlooker(request, name)
    data = review_of(request).database.picture(name, picture_id)
    if data is None:
        raise HTTPException(404, "There is no such picture.")
    headers = {"Cache-Control": "private, max-age=31536000, immutable"}
    return Response(data, media_type=MEDIA_TYPE, headers=headers)


def _pair_context(turn: Turn, config: StudyConfig) -> dict[str, Any]:
    """What of a turn the page shows: nothing that tells the systems apart."""
    sets = [turn.pair.pictures_a, turn.pair.pictures_b]
    if turn.asked.first == "b":
        sets.reverse()
    numbers = [question.name for question in config.questions]
    number = numbers.index(turn.asked.question)
    noun = "Set" if config.set_size > 1 else "Picture"
    return {
        "prompt": turn.pair.prompt,
        "question": config.questions[number].text,
        "number": number,
        "sets": [(f"{noun} 1", sets[0]), (f"{noun} 2", sets[1])],
        "ahead": turn.ahead,
    }


def _picture_context(turn: Turn, config: LabelConfig) -> dict[str, Any]:
    """What of a turn the page shows: not the prompt, which may say what there is to see."""
    number = config.asks.index(turn.asked.question)
    classes = config.questions[number].answers
    answers = [(f"{ANSWER_PREFIX}{each}", each, key) for each, key in zip(classes, _CLASS_KEYS, strict=False)]
    return {
        "axis": turn.asked.question,
        "number": number,
        "picture": turn.pair.pictures_a[0],
        "answers": [*answers, (f"{ANSWER_PREFIX}{CANNOT_TELL}", CANNOT_TELL.capitalize(), "0")],
        "ahead": turn.ahead,
    }


def _choices(config: StudyConfig | LabelConfig | CurateConfig, question: str) -> tuple[str, ...]:
    """What a form may say."""
    if isinstance(config, LabelConfig):
        classes = config.questions[config.asks.index(question)].answers
        return tuple(f"{ANSWER_PREFIX}{each}" for each in (*classes, CANNOT_TELL))
    return CHOICES if isinstance(config, StudyConfig) else ()


def _go(path: str) -> RedirectResponse:
    return RedirectResponse(path, 303)
