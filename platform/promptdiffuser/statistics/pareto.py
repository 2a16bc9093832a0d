"""What nothing beats at its cost."""

import numpy as np
import pandas as pd


def on_front(frame: pd.DataFrame, cost: str, objective: str) -> pd.Series:
    """Return of each row whether none has a higher objective at the same cost or less, nor an equal one at less."""
    ordered = frame[[cost, objective]].dropna().sort_values([cost, objective], ascending=[True, False])
    front = ordered[objective] > ordered[objective].cummax().shift(fill_value=-np.inf)
    return front.reindex(frame.index, fill_value=False)
