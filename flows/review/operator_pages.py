"""The operator's pages: studies, their progress and results, raters, instructions."""

from fastapi import APIRouter, Depends, HTTPException, Request
from fastapi.responses import HTMLResponse, RedirectResponse, Response
from markupsafe import Markup

from flows.review.sessions import (
    OPERATOR_COOKIE,
    Form,
    check_form,
    find_study,
    invitation,
    log_in,
    operator,
    remember,
    review_of,
    sign_form,
)
from flows.review.study_text import about
from flows.review.templating import markdown, page
from storage.reviews.review_tables import Rater, Study
from tasks.studies.study_records import completion_code, invite, parse_study
from tasks.studies.study_results import results_section, study_table, table_csv

router = APIRouter(dependencies=[Depends(operator)])
entrance = APIRouter()
_MOST_INVITED = 200


@entrance.get("/login")
def login_page() -> HTMLResponse:
    """Where the operator gives the token."""
    return page("login.html")


@entrance.post("/login")
def login(request: Request, form: Form) -> Response:
    """Let the operator in."""
    review = review_of(request)
    response = RedirectResponse("/", 303)
    remember(response, review, OPERATOR_COOKIE, log_in(review, form.get("operator_token", "")), "/")
    return response


@router.get("/")
def studies(request: Request) -> HTMLResponse:
    """List studies with their progress."""
    database = review_of(request).database
    rows = []
    for study in database.studies():
        raters = database.raters(study.name)
        rows.append(
            (study, about(study), len(raters), sum(done for _, done, _ in raters), sum(n for _, _, n in raters))
        )
    return page("studies.html", rows=rows)


@router.get("/studies/{name}")
def study_page(request: Request, name: str) -> HTMLResponse:
    """One study."""
    review = review_of(request)
    study = find_study(request, name)
    n_votes = review.database.count_votes(name)
    return page(
        "study.html",
        study=study,
        config=parse_study(study),
        n_votes=n_votes,
        raters=[_rater_row(study, *row, review.settings.base_url) for row in review.database.raters(name)],
        # which escapes the names
        results=Markup(results_section(review.database, name)) if n_votes else None,
        instructions=markdown(study.instructions),
        invite_token=sign_form(review, f"invite {name}"),
        instructions_token=sign_form(review, f"instructions {name}"),
    )


@router.post("/studies/{name}/invite")
def invite_raters(request: Request, name: str, form: Form) -> Response:
    """Make links for more raters."""
    review = review_of(request)
    check_form(review, f"invite {name}", form)
    study = find_study(request, name)
    n = form.get("n", "")
    if not (n.isdecimal() and len(n) <= len(str(_MOST_INVITED)) and 1 <= int(n) <= _MOST_INVITED):
        raise HTTPException(400, f"{n[:20]!r} is no number of raters from 1 to {_MOST_INVITED}.")
    for _ in range(int(n)):
        invite(review.database, study)
    return RedirectResponse(f"/studies/{name}", 303)


@router.post("/studies/{name}/instructions")
def set_instructions(request: Request, name: str, form: Form) -> Response:
    """Change the instructions, as long as nobody has voted under them."""
    review = review_of(request)
    check_form(review, f"instructions {name}", form)
    review.database.set_instructions(find_study(request, name).name, form.get("text", "").replace("\r\n", "\n"))
    return RedirectResponse(f"/studies/{name}", 303)


@router.get("/studies/{name}/votes.csv")
def votes(request: Request, name: str) -> Response:
    """The votes, labels or curated sets; raters under pseudonyms."""
    table, frame = study_table(review_of(request).database, find_study(request, name).name)
    headers = {"Content-Disposition": f'attachment; filename="{table}.csv"'}
    return Response(table_csv(frame), media_type="text/csv", headers=headers)


def _rater_row(study: Study, rater: Rater, n_done: int, n_all: int, base_url: str) -> dict[str, object]:
    return {
        "number": rater.number,
        "state": "closed" if rater.is_closed else "done" if n_done == n_all else f"{n_done} of {n_all}",
        "link": invitation(study, rater.rater_id, base_url),
        "code": completion_code(study, rater.rater_id),
    }
