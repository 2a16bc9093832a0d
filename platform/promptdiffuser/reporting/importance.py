"""How much each field of a sweep matters for its result, by Optuna's evaluators of importance.

Alone: functional analysis of variance of a random forest (Hutter, Hoos and Leyton-Brown 2014, An efficient approach for
assessing hyperparameter importance, ICML). With interactions: mean decrease of impurity in the splits of a forest.
"""

from collections.abc import Sequence

import numpy as np
import pandas as pd
from sklearn.ensemble import RandomForestRegressor

from promptdiffuser.errors import UserError
from promptdiffuser.sweeps.proposals import load_optuna

FEWEST_TRIALS = 8
"""With fewer a forest has nothing to learn from."""
_MOST_VALUES = 10
"""A number with no more values than this was chosen from a list; each value weighs the same, as that of a name does."""


def field_importance(trials: pd.DataFrame, fields: Sequence[str], objective: str, seed: int = 0) -> pd.DataFrame:
    """Return how much of the objective's variance each field explains, as a forest has learned it.

    `attrs["explained"]` says how far to trust that: the share of the variance of trials that a forest has not seen (out
    of bag) which it explains. At 0 or below, the shares mean nothing.

    Args:
        trials: One row per trial; trials without an objective are left out.
        fields: Columns that were swept.
        objective: Column to explain.
        seed: Of the forests.

    Returns:
        One row per field, the most important first, with the columns `alone` (share of the variance that the field
        explains by itself) and `total` (its share of what the forest's splits explain, interactions included); a field
        that never varied has 0.

    Raises:
        UserError: Optuna is not installed, or there are too few trials.
    """
    known = trials[np.isfinite(trials[objective].astype("float64"))]
    if len(known) < FEWEST_TRIALS:
        raise UserError(
            f"importance needs {FEWEST_TRIALS} trials with a result, there are {len(known)}; run more trials"
        )
    optuna = load_optuna("importance")
    codes = {field: _codes(known[field]) for field in fields}
    results = known[objective].to_numpy(np.float64)
    varied = {field: values for field, values in codes.items() if len(set(values)) > 1 and np.ptp(results) > 0}
    distributions = {
        field: optuna.distributions.CategoricalDistribution(sorted(set(values)))
        if isinstance(values[0], int)
        else optuna.distributions.FloatDistribution(min(values), max(values))
        for field, values in varied.items()
    }
    study = optuna.create_study()
    for *values, result in zip(*varied.values(), results, strict=True):
        point = dict(zip(varied, values, strict=True))
        study.add_trial(optuna.trial.create_trial(params=point, distributions=distributions, value=result))
    evaluators = optuna.importance
    alone = evaluators.FanovaImportanceEvaluator(seed=seed).evaluate(study)
    total = evaluators.MeanDecreaseImpurityImportanceEvaluator(seed=seed).evaluate(study)
    frame = pd.DataFrame({"alone": alone, "total": total}, index=pd.Index(fields, name="field")).fillna(0.0)
    forest = RandomForestRegressor(oob_score=True, random_state=seed)
    frame.attrs["explained"] = float(forest.fit(np.column_stack([*codes.values()]), results).oob_score_)
    return frame.sort_values("total", ascending=False, kind="stable")


def _codes(values: pd.Series) -> list[int] | list[float]:
    """Return a number of many values as it is, and of anything else the place of each value among all of them."""
    is_number = pd.api.types.is_numeric_dtype(values) and not pd.api.types.is_bool_dtype(values)
    if is_number and values.nunique() > _MOST_VALUES:
        return [float(value) for value in values]
    return [int(code) for code in pd.Categorical(values if is_number else values.astype(str)).codes]
