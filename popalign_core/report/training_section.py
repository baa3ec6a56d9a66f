"""The training behind one of the systems: its curves, and what the making of its data left out."""

from html import escape

import pandas as pd

from popalign_core.report.cells import row, table
from popalign_core.report.charts import curve
from popalign_core.report.document import figures

_WORDS = {
    "loss": "Loss",
    "implicit_accuracy": "Pairs whose preferred side the model prefers (share)",
    "g": "Squared error of the base model minus that of the trained one (g)",
    "g_spread": "Spread of g within a batch",
    "policy_mse": "Squared error of the noise, trained model",
    "reference_mse": "Squared error of the noise, base model",
    "normaliser": "Normaliser Z of Eq. 11",
    "retention": "Retention loss",
    "grad_norm": "Norm of the gradient",
    "learning_rate": "Learning rate",
}
"""Names of the log in a reader's words, with what they are measured in; a side follows."""


def training_curves(log: pd.DataFrame) -> str:
    """A chart a quantity that was logged, where there are two finite values at least; '' without any."""
    charts = []
    for name in dict.fromkeys(log["name"]):
        rows = log[log["name"] == name].sort_values("step")
        finite = rows[rows["value"].map(lambda value: abs(value) < float("inf"))]
        if len(finite) > 1:
            title = _in_words(str(name))
            charts.append((title, curve(title, finite["step"].tolist(), finite["value"].tolist())))
    return "<p>Thin: every logged step. Thick: the running mean.</p>" + figures(charts) if charts else ""


def _in_words(name: str) -> str:
    """A logged quantity's name; one that is not known without its underscores."""
    base, _, side = name.rpartition("_")
    if side in ("preferred", "dispreferred") and base in _WORDS:
        return f"{_WORDS[base]}, {side} images"
    return _WORDS.get(name, name.replace("_", " ").capitalize())


def training_drop_table(drops: pd.DataFrame) -> str:
    """What the making of the training data left out, by stage and reason; '' without any."""
    heads = ("Training data, at the stage", "Reason", "Count")
    counted = zip(drops["stage"], drops["reason"], drops["n"], strict=True)
    return table(heads, [
        row(heads, str(stage), (escape(str(reason).replace("_", " ")), f"{n:,}")) for stage, reason, n in counted
    ])  # fmt: skip
