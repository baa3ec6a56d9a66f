"""The training behind one of the systems: its curves, and what the making of its data left out."""

from html import escape

import pandas as pd

from popalign_core.report.cells import row, table
from popalign_core.report.charts import curve
from popalign_core.report.document import figures


def training_curves(log: pd.DataFrame) -> str:
    """A chart a quantity that was logged, where there are two finite values at least; '' without any."""
    charts = []
    for name in dict.fromkeys(log["name"]):
        rows = log[log["name"] == name].sort_values("step")
        finite = rows[rows["value"].map(lambda value: abs(value) < float("inf"))]
        if len(finite) > 1:
            chart = curve(str(name), finite["step"].tolist(), finite["value"].tolist())
            charts.append((str(name).replace("_", " ").capitalize(), chart))
    return "<p>Thin: every logged step. Thick: the running mean.</p>" + figures(charts) if charts else ""


def training_drop_table(drops: pd.DataFrame) -> str:
    """What the making of the training data left out, by stage and reason; '' without any."""
    heads = ("Training data, at the stage", "Reason", "Count")
    counted = zip(drops["stage"], drops["reason"], drops["n"], strict=True)
    return table(heads, [
        row(heads, str(stage), (escape(str(reason).replace("_", " ")), f"{n:,}")) for stage, reason, n in counted
    ])  # fmt: skip
