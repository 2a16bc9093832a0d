"""How much of the variance of a method's scores comes from tasks, trainings, prompts and episodes.

Axes: J tasks, S trainings, P prompts of a training for a task, E episodes of a prompt.
"""

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from promptdiffuser.errors import UserError
from promptdiffuser.statistics.scores import of_method

LEVELS = ("task", "training seed", "task × training seed", "prompt", "episode")
"""From the highest to the lowest."""


def variance_components(episodes: pd.DataFrame, method: str, value: str = "score") -> pd.DataFrame:
    """Return the variance components of one method's scores, by the method of moments.

    The model is score = mean + task + training + task × training + prompt + episode with independent random effects:
    every training meets every task, prompts lie within task and training, episodes within prompts. Mean squares of the
    balanced analysis of variance are set equal to their expectations (Searle, Casella and McCulloch, Variance
    Components, 1992, chapter 4). An estimate can be negative where a component is small. Copies of a prompt count once.

    A level with one member has no row: what a single training adds differently to each task is in the row `task`, what
    a single episode adds is in the row `prompt`.

    Returns:
        One row a level (task, training seed, task × training seed, prompt, episode), with the columns
            freedom: degrees of freedom,
            mean_square,
            variance: the component, unbiased,
            share: of the sum of all components, negative ones counted as zero.

    Raises:
        UserError: The method is missing, or the design is not balanced.
    """
    scores_JSPE = _balanced(of_method(episodes, method), method, value)
    tasks, trainings, prompts, repeats = scores_JSPE.shape
    prompt_JSP = scores_JSPE.mean(axis=3)
    cell_JS = prompt_JSP.mean(axis=2)
    task_J, training_S, mean = cell_JS.mean(axis=1), cell_JS.mean(axis=0), cell_JS.mean()
    interaction_JS = cell_JS - task_J[:, None] - training_S + mean
    # (level, deviations, degrees of freedom, episodes that share an effect), from the lowest to the highest
    levels = (
        ("episode", scores_JSPE - prompt_JSP[..., None], tasks * trainings * prompts * (repeats - 1), 1),
        ("prompt", prompt_JSP - cell_JS[..., None], tasks * trainings * (prompts - 1), repeats),
        ("task × training seed", interaction_JS, (tasks - 1) * (trainings - 1), prompts * repeats),
        ("training seed", training_S - mean, trainings - 1, tasks * prompts * repeats),
        ("task", task_J - mean, tasks - 1, trainings * prompts * repeats),
    )
    rows, below = [], 0.0
    for level, deviations, freedom, shared in levels:
        if freedom == 0:
            continue
        mean_square = shared * float((deviations**2).sum()) / freedom
        rows.append((level, freedom, mean_square, (mean_square - below) / shared))
        # Tasks and trainings cross, so neither is part of what the other's mean square holds besides its own effect.
        if level not in ("training seed", "task"):
            below = mean_square
    frame = pd.DataFrame(rows[::-1], columns=["level", "freedom", "mean_square", "variance"]).set_index("level")
    positive = frame["variance"].clip(lower=0)
    return frame.assign(share=positive / positive.sum() if positive.sum() > 0 else 0.0)


def _balanced(own: pd.DataFrame, method: str, value: str) -> NDArray[np.float64]:
    """Return the scores (J, S, P, E)."""
    if value not in own:
        raise UserError(f"the frame of episodes has no column {value!r}; statistics.scores.normalised adds `score`")
    own = own.assign(training_seed=own.get("training_seed", 0)).sort_values(
        ["task", "training_seed", "prompt", "episode"]
    )
    # Copies of a prompt are one prompt, with the episodes of all of them; copies of an episode are one episode.
    prompt = ["task", "training_seed", "prompt_source"]
    own = own.drop_duplicates([*prompt, "start"])
    own = own.assign(episode=own.groupby(prompt).cumcount()).sort_values([*prompt, "episode"])
    levels = [*prompt, "episode"]
    shape = []
    for depth in range(len(levels)):
        members = own.groupby(levels[:depth])[levels[depth]].nunique() if depth else own[levels[:1]].nunique()
        if members.nunique() > 1:
            raise UserError(
                f"method {method!r} has from {members.min()} to {members.max()} values of {levels[depth]} in each "
                f"{' and '.join(levels[:depth])}; variance components need equal numbers"
            )
        shape.append(int(members.iloc[0]))
    if own.groupby("training_seed")["task"].nunique().min() < shape[0]:
        raise UserError(f"not every training of method {method!r} has every task; evaluate all on all of them")
    return np.asarray(own[value], np.float64).reshape(shape)
