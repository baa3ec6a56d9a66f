"""A curator's pages: the set with one image marked, its proposed replacement, and the balance of the set."""

import time
from dataclasses import dataclass
from typing import Any, Literal

from fastapi import APIRouter, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response

from flows.review.sessions import Form, RaterSession, Session, open_form, review_of, sign, sign_seen
from flows.review.templating import message, page
from popalign_core.config.review import CurateConfig
from popalign_core.errors import InputError
from popalign_core.preferences.chain import Chain, Proposal, accept, undo_proposal
from popalign_core.review.curation_chains import next_proposal, replay, weigh
from storage.reviews.chain_steps import add_step, drop_step, end_chain, read_classes, read_steps
from storage.reviews.review_tables import DONE, GIVEN_UP, ChainStep, StudyPair
from storage.reviews.votes import Turn
from tasks.studies.study_records import parse_kind

router = APIRouter(prefix="/s/{name}/curate")
Balance = Literal["shown", "hidden"]
_ANSWERS = {"take": True, "keep": False}
_ENDS = {"done": DONE, "give up": GIVEN_UP}
_OVERTAKEN = "This set has changed since you opened the page, in another window perhaps. It is kept as it is now."


@dataclass(frozen=True)
class _Standing:
    """A set as its curator sees it."""

    pair: StudyPair
    chain: Chain
    chain_id: str
    config: CurateConfig

    @property
    def proposal(self) -> Proposal | None:
        return next_proposal(self.chain, self.chain_id, self.config)

    def picture(self, image_id: int | str) -> str:
        ids = [*self.pair.images_a, *self.pair.images_b]
        return [*self.pair.pictures_a, *self.pair.pictures_b][ids.index(str(image_id))]

    def ahead(self) -> list[str]:
        """Images that come next, whatever is answered."""
        proposal = self.proposal
        if proposal is None:
            return []
        chains = (accept(self.chain, proposal), undo_proposal(self.chain))
        coming = [(chain, next_proposal(chain, self.chain_id, self.config)) for chain in chains]
        return [self.picture(chain.spare[each.replacement]) for chain, each in coming if each is not None]


@router.get("")
def curate(request: Request, name: str, session: Session, balance: Balance | None = None) -> Response:
    """The set and its next step."""
    config = _config(session)
    database = review_of(request).database
    turn = database.turn(session.rater_id)
    if turn is None:
        return RedirectResponse(f"/s/{name}/done", 303)
    chain = replay(turn.pair.images_a, turn.pair.images_b, read_steps(database, turn.asked.asked_id))
    chain_id = f"{turn.pair.pair_id} {turn.asked.asked_id}"  # curators of one prompt see different pictures
    weighed = weigh(chain.members, read_classes(database, turn.pair.pair_id), config.axes)
    return _page(name, session, turn, _Standing(turn.pair, chain, chain_id, config), balance or config.balance, weighed)


@router.post("")
def step(request: Request, name: str, session: Session, form: Form) -> Response:
    """Store a step. Sent twice it is one; another answer to the same step is refused."""
    asked_id, number, slot, replacement, since = open_form(session, "step", form)
    if form.get("choice") not in _ANSWERS:
        raise HTTPException(400, "That is not one of the answers; load the page again.")
    taken = ChainStep(
        asked_id=asked_id,
        number=number,
        slot=slot,
        replacement=replacement,
        is_accepted=_ANSWERS[form["choice"]],
        seconds=max(0.0, time.time() - since),
    )
    is_kept = add_step(review_of(request).database, session.rater_id, taken)
    return _go_on(name, form) if is_kept else _overtaken(name)


@router.post("/end")
def end(request: Request, name: str, session: Session, form: Form) -> Response:
    """The curator is content, or gives this set up."""
    asked_id, number, since = open_form(session, "end", form)
    if form.get("choice") not in _ENDS:
        raise HTTPException(400, "That is not one of the answers; load the page again.")
    seconds, choice = max(0.0, time.time() - since), _ENDS[form["choice"]]
    is_kept = end_chain(review_of(request).database, session.rater_id, asked_id, number, choice, seconds)
    return _go_on(name, form) if is_kept else _overtaken(name)


@router.post("/undo")
def undo_step(request: Request, name: str, session: Session, form: Form) -> Response:
    """Take the last step back; sent twice, it takes back no more than one."""
    asked_id, number = open_form(session, "undo step", form)
    drop_step(review_of(request).database, session.rater_id, asked_id, number)
    return _go_on(name, form)


def _page(
    name: str, session: RaterSession, turn: Turn, standing: _Standing, balance: Balance, weighed: Any
) -> HTMLResponse:
    chain, proposal, asked_id = standing.chain, standing.proposal, turn.asked.asked_id
    number = chain.n_accepted + chain.n_undone
    may_undo = sign(session, "undo step", asked_id, number - 1) if number else None
    step_token = proposal and sign_seen(session, "step", asked_id, number, proposal.slot, proposal.replacement)
    return page(
        "curate.html",
        name=name,
        turn=turn,
        number=number,
        members=[standing.picture(member) for member in chain.members],
        slot=proposal.slot if proposal else None,
        coming=standing.picture(chain.spare[proposal.replacement]) if proposal else None,
        balance=balance,
        weighed=weighed,
        ahead=standing.ahead(),
        step_token=step_token,
        end_token=sign_seen(session, "end", asked_id, number),
        undo_action="curate/undo" if may_undo else "undo",
        undo_token=may_undo or (sign(session, "undo", turn.last.asked_id) if turn.last else None),
    )


def _config(session: RaterSession) -> CurateConfig:
    try:
        return parse_kind(session.study, CurateConfig)
    except InputError:
        raise HTTPException(404, "There is nothing here.") from None


def _go_on(name: str, form: dict[str, str]) -> RedirectResponse:
    """To the next step; whether the balance shows stays as it was."""
    balance = form.get("balance")
    return RedirectResponse(
        f"/s/{name}/curate" + (f"?balance={balance}" if balance in ("shown", "hidden") else ""), 303
    )


def _overtaken(name: str) -> HTMLResponse:
    return message(_OVERTAKEN, 409, back=f"/s/{name}/curate")
