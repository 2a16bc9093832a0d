"""Frames of episodes from arrays, and rliable as an oracle."""

from collections.abc import Mapping
from types import ModuleType
from typing import Any

import numpy as np
import pandas as pd
import pytest
from numpy.typing import NDArray


def frame(returns_by_method: Mapping[str, NDArray[Any]]) -> pd.DataFrame:
    """Return the frame of episodes with these returns (task, training, prompt, episode).

    Every method meets the same simulator seeds; the column training_seed is there where there are several.
    """
    parts = []
    for method, returns in returns_by_method.items():
        task, training, prompt, episode = (axis.ravel() for axis in np.indices(returns.shape))
        columns = {"task": task, "training_seed": training, "prompt": prompt, "episode": episode}
        seeds = {"seed": 1000 * task + 10 * prompt + episode}
        parts.append(pd.DataFrame({"method": method, **columns, **seeds, "return": returns.ravel()}))
    episodes = pd.concat(parts, ignore_index=True)
    return episodes if episodes["training_seed"].nunique() > 1 else episodes.drop(columns="training_seed")


def rliable_library() -> ModuleType:
    """Return rliable.library.

    rliable 1.2 asks for arch below 8, whose models call a private decorator of pandas that has other arguments since
    pandas 3. Its bootstrap, all that rliable uses, does not.
    """
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("pandas.util._decorators.deprecate_kwarg", lambda *names: lambda function: function)
        import rliable.library
    return rliable.library
