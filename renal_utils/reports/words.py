"""The words of a report: its numbers told to a reader who is no statistician."""

import pandas as pd

from renal_utils.intervals import LEVEL

NOT_FOR_DIAGNOSIS = (
    "Not for diagnosis. These numbers were computed by a neural network and checked by nobody. "
    "They must not guide the treatment of a patient."
)


def summarise(findings: pd.DataFrame, *, level: float | int = LEVEL) -> list[str]:
    """Return what the findings say, one plain sentence a measure, for all slides together."""
    rows = findings[findings["scope"] == "all"].set_index("measure")
    donors = findings.loc[findings["scope"] == "donor", "name"].nunique()
    slides = findings.loc[findings["scope"] == "slide", "name"].nunique()
    if donors == 1:  # then its own intervals say more than those over donors
        rows = findings[findings["scope"] == "donor"].set_index("measure")
    found = int(rows.loc["glomeruli", "value"])
    sentences = [
        f"{found} glomeruli were found on {_many(slides, 'slide')} of {_many(donors, 'donor')}."
    ]
    texts = {
        "density": "There are {} glomeruli per square millimetre.",
        "mean_diameter": "A glomerulus is {} wide on average.",
        "sclerosed_share": "Of the glomeruli, {} look sclerosed to the network.",
        "fibrosis_share": "Of the area, {} looks fibrotic to the network.",
    }
    for measure, text in texts.items():
        if measure in rows.index and not pd.isna(rows.loc[measure, "value"]):
            sentences.append(text.format(tell(rows.loc[measure])))
    if any("(" in sentence for sentence in sentences):
        sentences.append(f"Figures in brackets are {level:.0%} intervals.")
    return sentences


def tell(row: pd.Series) -> str:
    """Return a finding in words: its value, and its interval in brackets where it has one."""
    share, unit = row["unit"] == "share", row["unit"]

    def number(value: float) -> str:
        if share:
            return f"{value:.1%}"
        if unit in ("", "µm²") or value >= 1000:
            return f"{value:,.0f}"
        return f"{value:#.3g}".rstrip(".")

    if pd.isna(row["value"]):
        return "not known"
    shown = "" if unit in ("", "share", "1/mm²") else f" {unit}"
    if pd.isna(row["low"]):
        return number(row["value"]) + shown
    return f"{number(row['value'])}{shown} ({number(row['low'])} to {number(row['high'])})"


def _many(count: int, what: str) -> str:
    return f"{count} {what}" if count == 1 else f"{count} {what}s"
