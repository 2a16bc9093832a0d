"""Compare runs of MLflow: what differs in configuration, in training, in returns and in cost, and how sure that is.

Every run is compared with the first; runs that differ only in the seed, the draw of the few-shot set and the start
states count as trainings of one.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import isfinite, nan

import pandas as pd

from promptdiffuser.errors import UserError
from promptdiffuser.reporting import page
from promptdiffuser.reporting.evidence import columns_of, columns_of_pair
from promptdiffuser.reporting.groups import Side, find_sides
from promptdiffuser.reporting.verdicts import verdict
from promptdiffuser.statistics.aggregates import probability_of_improvement
from promptdiffuser.statistics.intervals import Interval
from promptdiffuser.statistics.paired import PairedDifference, adjusted, mean_return, paired_difference
from promptdiffuser.statistics.scores import run_scores


@dataclass(frozen=True)
class Pair:
    """How one method of a side compares with one of the first side."""

    side: Side
    reference: Side
    method: str
    """Method of the side; of the reference too, unless both have a single one."""
    reference_method: str
    difference: PairedDifference
    """Side minus reference, in return, on the same episodes; its p-value is adjusted for the number of pairs."""
    chance: Interval
    """Probability that a run of the side scores higher than one of the reference on the same task."""

    @property
    def sentence(self) -> str:
        """What the numbers allow to say, in words."""
        about = f"{self.method}: " if self.method == self.reference_method else ""
        said = f"{about}{verdict(self.difference, self.side.name, self.reference.name)}"
        if self.difference.verdict == "equal" or not isfinite(self.chance.estimate):
            return said
        return f"{said}; probability of improvement {page.number(self.chance.estimate)} {page.bounds(self.chance)}"


@dataclass(frozen=True)
class Comparison:
    """Sides with everything that differs between them; every table is a frame."""

    sides: tuple[Side, ...]
    pairs: tuple[Pair, ...]
    warnings: tuple[str, ...]
    """What makes the returns not comparable, where that was overruled, and what could not be computed."""

    @property
    def verdicts(self) -> list[str]:
        """One sentence a pair."""
        return [pair.sentence for pair in self.pairs]

    @property
    def settings(self) -> pd.DataFrame:
        """Settings that are not equal: one row a setting, one column a side."""
        return _unequal({side.name: side.settings for side in self.sides})

    @property
    def returns(self) -> pd.DataFrame:
        """One row a side and method: return, its 95 % interval, normalised score, success where known, size."""
        rows = []
        for side in self.sides:
            for method in side.methods:
                own = side.of_method(method)
                rows.append(
                    {
                        "side": side.name,
                        "method": method,
                        **columns_of("return", mean_return(_comparable(own))),
                        "normalised": own.groupby("task")["score"].mean().mean(),
                        **({"success": own.groupby("task")["success"].mean().mean()} if "success" in own else {}),
                        "episodes": len(own),
                        "trainings": own["training_seed"].nunique(),
                    }
                )
        return pd.DataFrame(rows)

    @property
    def differences(self) -> pd.DataFrame:
        """One row a pair: differences in return with both intervals, tasks won, probability of improvement, verdict."""
        return pd.DataFrame(
            [
                {
                    "side": pair.side.name,
                    "method": pair.method,
                    "reference": pair.reference.name,
                    "reference_method": pair.reference_method,
                    **columns_of_pair(pair.difference),
                    **columns_of("probability_of_improvement", pair.chance),
                }
                for pair in self.pairs
            ]
        )

    @property
    def tasks(self) -> pd.DataFrame:
        """Mean return: one row a task, one column a side and method."""
        everything = pd.concat([side.episodes.assign(side=side.name) for side in self.sides])
        return everything.pivot_table(
            index="task", columns=["side", "method"], values="return", sort=False
        ).sort_index()

    @property
    def costs(self) -> pd.DataFrame:
        """One row a side and method, one column a cost."""
        return pd.concat({side.name: side.costs for side in self.sides}, names=["side"])

    @property
    def curves(self) -> pd.DataFrame:
        """Training metrics of all sides, one row a point: side, training_seed, stage, run, key, step, value."""
        frame = pd.concat([side.curves.assign(side=side.name) for side in self.sides], ignore_index=True)
        return frame[["side", "training_seed", "stage", "run", "key", "step", "value"]]

    def tables(self) -> dict[str, pd.DataFrame]:
        """Return all frames by the name of their file, with flat columns."""
        tasks = self.tasks.set_axis([" ".join(column) for column in self.tasks.columns], axis=1)
        return {
            "settings": self.settings,
            "returns": self.returns,
            "differences": self.differences,
            "tasks": tasks,
            "costs": self.costs,
            "curves": self.curves,
        }


def compare(uri: str, selections: Sequence[str], force: bool = False) -> Comparison:
    """Compare runs; the first configuration is the reference of all others.

    Args:
        uri: MLflow tracking URI.
        selections: Run ids of experiments or methods, or MLflow filter strings.
        force: Compare what is not comparable, and say so in `warnings`.

    Raises:
        UserError: Fewer than two configurations are found, they have no method in common, or they were not evaluated
            under the same conditions (dataset digest, physics, protocol, test tasks).
    """
    sides = find_sides(uri, selections)
    if len(sides) < 2:
        found = ", ".join(f"{side.name} = {side.title}" for side in sides)
        raise UserError(f"a comparison needs two configurations, found {found}; name another run")
    warnings = _incomparable(sides)
    if warnings and not force:
        raise UserError(f"{'; '.join(warnings)}; --force compares them all the same and says so")
    reference, *others = sides
    pairs = []
    for side in others:
        matched = _matched(side, reference)
        if not matched:
            names = " and ".join(f"{one.name} ({', '.join(one.methods)})" for one in (side, reference))
            raise UserError(f"{names} have no method in common; name the runs of two methods to compare those")
        for method, reference_method in matched:
            try:
                pairs.append(_pair(side, reference, method, reference_method))
            except UserError as error:
                warnings.append(f"{method} of {side.name} is not compared: {error}")
    if not pairs:
        raise UserError("; ".join(warnings))
    tested = adjusted(dict(enumerate(pair.difference for pair in pairs)))
    pairs = [replace(pair, difference=tested[number]) for number, pair in enumerate(pairs)]
    return Comparison(tuple(sides), tuple(pairs), tuple(warnings))


def _matched(side: Side, reference: Side) -> list[tuple[str, str]]:
    if len(side.methods) == len(reference.methods) == 1:
        return [(side.methods[0], reference.methods[0])]
    return [(method, method) for method in side.methods if method in reference.methods]


def _pair(side: Side, reference: Side, method: str, reference_method: str) -> Pair:
    both = _comparable(pd.concat([side.of_method(method), reference.of_method(reference_method)], ignore_index=True))
    try:
        scores = run_scores(both)
        chance = probability_of_improvement(scores[side.name], scores[reference.name])
    except UserError:  # runs without episodes that ended; the difference of those that did may still be told
        chance = Interval(nan)
    return Pair(
        side,
        reference,
        method,
        reference_method,
        paired_difference(both, side.name, reference.name),
        chance,
    )


def _comparable(episodes: pd.DataFrame) -> pd.DataFrame:
    """Return the frame without training seeds where no side has several: those of single trainings need not agree."""
    several = (episodes.groupby("method")["training_seed"].nunique() > 1).any()
    return episodes if several else episodes.drop(columns="training_seed")


def _incomparable(sides: Sequence[Side]) -> list[str]:
    """Return what keeps returns from being comparable; trainings are held against those of the same name."""
    found = _differing({side.name: side.conditions for side in sides})
    if all(len(side.replicates) == 1 for side in sides):
        return found + _differing({side.name: next(iter(side.replicates.values())) for side in sides})
    for label in dict.fromkeys(label for side in sides for label in side.replicates):
        own = {side.name: side.replicates[label] for side in sides if label in side.replicates}
        found += _differing(own, f" of training {label}")
    return found


def _differing(values: dict[str, dict[str, str]], where: str = "") -> list[str]:
    unequal = _unequal(values)
    return [
        f"not comparable, {row.Index}{where} differs: "
        + ", ".join(f"{name} {value}" for name, value in zip(unequal, row[1:], strict=True))
        for row in unequal.itertuples()
    ]


def _unequal(values: dict[str, dict[str, str]]) -> pd.DataFrame:
    """Return the keys whose values are not equal everywhere; a key that one lacks is unequal."""
    frame = pd.DataFrame(values, dtype=object).fillna("-").rename_axis("setting")
    return frame[frame.nunique(axis=1) > 1].sort_index()
