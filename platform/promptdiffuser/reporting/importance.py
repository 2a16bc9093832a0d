"""How much each field of a sweep matters for its result.

A random forest (scikit-learn) learns the result from the fields; Sobol's indices (scipy) then take the variance of its
prediction apart. Hutter, Hoos and Leyton-Brown 2014 (An efficient approach for assessing hyperparameter importance,
ICML) do the same, with the indices of a forest's leaves instead of samples.
Axes: T trials, F fields, N samples.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.stats import sobol_indices, uniform
from sklearn.ensemble import RandomForestRegressor

from promptdiffuser.errors import UserError

FEWEST_TRIALS = 8
"""With fewer a forest has nothing to learn from."""
_TREES = 256
_SAMPLES = 2**11


def field_importance(trials: pd.DataFrame, fields: Sequence[str], objective: str, seed: int = 0) -> pd.DataFrame:
    """Return how much of the objective's variance each field explains.

    Every field is drawn independently from the values that trials had of it, so a search that tried good values more
    often weighs them more. Shares are of the forest's prediction, which `attrs["explained"]` judges: the share of the
    variance of trials it had not seen (out of bag) that it explains; at 0 or below the shares mean nothing.

    Args:
        trials: One row a trial; trials without an objective are left out.
        fields: Columns that were swept.
        objective: Column to explain.
        seed: Of the forest and the samples.

    Returns:
        One row a field, the most important first, with the columns `alone` (first-order index) and `total` (with all
        interactions, total-order index); a field that never varied has 0.

    Raises:
        UserError: There are too few trials.
    """
    known = trials[np.isfinite(trials[objective].astype("float64"))]
    if len(known) < FEWEST_TRIALS:
        raise UserError(
            f"importance needs {FEWEST_TRIALS} trials with a result, there are {len(known)}; run more trials"
        )
    codes_TF = np.column_stack([_codes(known[field]) for field in fields])
    values_T = known[objective].to_numpy(np.float64)
    forest = RandomForestRegressor(_TREES, oob_score=True, random_state=seed).fit(codes_TF, values_T)
    sorted_FT = np.sort(codes_TF.T, axis=1)

    def predicted(uniform_FN: NDArray[np.float64]) -> NDArray[np.float64]:
        """Return the prediction at quantiles of the fields' values."""
        positions = np.minimum((uniform_FN * len(known)).astype(np.int64), len(known) - 1)
        return np.asarray(forest.predict(np.take_along_axis(sorted_FT, positions, axis=1).T))[None]

    if np.ptp(values_T) > 0:
        found = sobol_indices(
            func=predicted, n=_SAMPLES, dists=[uniform()] * len(fields), rng=np.random.default_rng(seed)
        )
        alone, total = found.first_order.ravel(), found.total_order.ravel()
    else:
        alone = total = np.zeros(len(fields))
    frame = pd.DataFrame({"alone": alone.clip(0, 1), "total": total.clip(0, 1)}, index=pd.Index(fields, name="field"))
    frame = frame.sort_values("total", ascending=False, kind="stable")
    frame.attrs["explained"] = float(forest.oob_score_)
    return frame


def _codes(values: pd.Series) -> NDArray[np.float64]:
    """Return numbers as they are, and anything else as the number of its name."""
    if pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values):
        return np.asarray(values, np.float64)
    return np.asarray(pd.Categorical(values.astype(str)).codes, np.float64)
