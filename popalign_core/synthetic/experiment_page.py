"""The 1-D experiment as one HTML page."""

from collections.abc import Sequence
from html import escape

import pandas as pd
import torch

from popalign_core.report.charts import Line, lines
from popalign_core.report.style import CSS
from popalign_core.synthetic.experiment import MAIN, Outcome, summarise_experiment
from popalign_core.synthetic.mixture import Mixture, expected_masses, reference_mixture

_GRID = torch.linspace(-11, 11, 221, dtype=torch.float64)
_THEORY = (1.0, 2.0, 4.0)


def build_page(outcomes: Sequence[Outcome]) -> str:
    """Densities, masses over training, and the table, as a page that loads nothing."""
    parts = [
        "<p>G1 and G3 are a biased pair; no preference compares G2 (Eq. 12). Both sides of the preferences "
        "come from G1 and G3. An objective should even out G1 and G3 and leave G2 where it was.</p>",
        *(_setting(outcomes, setting.name) for setting in MAIN),
        "<h2>All runs</h2>",
        _table(summarise_experiment(outcomes)),
        "<h2>Why</h2>",
        "<p>On exact log-ratios Eq. 11 without normaliser is logistic density-ratio estimation: on G1 and G3 the "
        "policy goes to p_ref (p_w / p_l)<sup>1/beta</sup>, and what the two do not use falls to G2. They use what "
        "they had at beta = 1 only. With Z from the batch the loss does not see a shift of all log-ratios at once, so "
        "nothing says how much mass G1 and G3 may take from G2. SFT takes all of it.</p>",
        _table(_theory(outcomes)),
    ]
    return (
        '<!DOCTYPE html>\n<html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width, initial-scale=1">'
        f"<title>Mixture experiment</title><style>{CSS}</style></head><body>"
        '<header class="top"><h1>What an objective does to mass that is not compared</h1></header>'
        f"<main>{''.join(parts)}</main></body></html>\n"
    )


def _setting(outcomes: Sequence[Outcome], name: str) -> str:
    chosen = [outcome for outcome in outcomes if outcome.setting.name == name]
    outcome = chosen[0]
    density = lines(
        "density",
        [Line("", *_curve(reference_mixture()), "dotted"), Line("", *_curve(outcome.final), "line-1")],
        "x from",
    )
    steps = [float(row[0]) for row in outcome.history]
    masses = lines(
        "mass over training",
        [Line(f"G{k}", steps, [row[k] for row in outcome.history], f"line-{k}") for k in (1, 2, 3)],
        "step",
    )
    return (
        f"<h2>{escape(name)}</h2><div class='charts'><figure><figcaption>Density, the reference dotted</figcaption>"
        f"{density}</figure><figure><figcaption>Mass of G1, G2, G3</figcaption>{masses}</figure></div>"
    )


def _curve(mixture: Mixture) -> tuple[list[float], list[float]]:
    return _GRID.tolist(), mixture.log_density(_GRID).exp().tolist()


def _theory(outcomes: Sequence[Outcome]) -> pd.DataFrame:
    rows = []
    for beta in _THEORY:
        found = [o.history[-1][1:] for o in outcomes if o.setting.name == f"popalign zero beta {beta:g}"]
        if found:
            means = [sum(column) / len(found) for column in zip(*found, strict=True)]
            cells = zip(("G1", "G2", "G3"), expected_masses(beta), means, strict=True)
            rows.append(
                {"beta": beta} | {f"{k} {what}": v for k, e, m in cells for what, v in (("theory", e), ("found", m))}
            )
    return pd.DataFrame(rows)


def _table(frame: pd.DataFrame) -> str:
    head = "".join(f"<th>{escape(str(column))}</th>" for column in frame.columns)
    body = "".join(
        "<tr>" + "".join(f"<td>{_cell(value)}</td>" for value in row) + "</tr>"
        for row in frame.itertuples(index=False, name=None)
    )
    return f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"


def _cell(value: object) -> str:
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.3f}" if isinstance(value, float) else escape(str(value))
