"""Frames of episodes from arrays."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray


def frame(
    returns_by_method: Mapping[str, NDArray[Any]], sources: Mapping[str, int] | None = None, random_start: bool = True
) -> pd.DataFrame:
    """Return the frame of episodes with these returns (task, training, prompt, episode).

    Every method meets the same simulator seeds; the column training_seed is there where there are several.

    Args:
        returns_by_method: Method -> returns.
        sources: Method -> number of prompts that are no copies, used in turn; all prompts if a method is not named.
        random_start: Whether the seed decides where an episode starts.
    """
    parts = []
    for method, returns in returns_by_method.items():
        task, training, prompt, episode = (axis.ravel() for axis in np.indices(returns.shape))
        columns = {"task": task, "training_seed": training, "prompt": prompt, "episode": episode}
        seed = 1000 * task + 10 * prompt + episode
        source = prompt % (sources or {}).get(method, returns.shape[2])
        units = {"prompt_source": source, "seed": seed, "start": seed if random_start else np.zeros_like(seed)}
        parts.append(pd.DataFrame({"method": method, **columns, **units, "return": returns.ravel()}))
    episodes = pd.concat(parts, ignore_index=True)
    return episodes if episodes["training_seed"].nunique() > 1 else episodes.drop(columns="training_seed")
