"""A sweep's folder: what was proposed, scored and found, one file each, so that nothing is lost with the driver.

SWEEP/trial-0007/proposal.json     the point, written before the trial starts
scores.json       a score after each milestone that was reached
result.json       the trial's row of the table, written when it has ended
failed.json       the error of a trial that could not end; it runs again with the next command
"""

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from promptdiffuser.sweeps.proposals import Known, Proposal
from promptdiffuser.sweeps.space import Point, value_of
from promptdiffuser.sweeps.sweep import Sweep
from promptdiffuser.training.checkpoint import write_json
from promptdiffuser.training.selection import select_best

Row = dict[str, Any]


def trial_name(number: int) -> str:
    """Return the name of a trial, and of its folder."""
    return f"trial-{number:04d}"


def trial_number(name: str) -> int:
    """Return the number in a trial's name."""
    return int(name.removeprefix("trial-"))


@dataclass(frozen=True)
class Ledger:
    """The files of a sweep."""

    folder: Path
    sweep: Sweep

    def trial_folder(self, number: int) -> Path:
        """Return where a trial writes."""
        return self.folder / trial_name(number)

    def __len__(self) -> int:
        """Count the trials that were proposed, by this command or an earlier one."""
        number = 0
        while (self.trial_folder(number) / "proposal.json").is_file():
            number += 1
        return number

    def unended(self) -> list[int]:
        """Return the proposed trials without a result, those that failed among them."""
        return [number for number in range(len(self)) if self.result(number) is None]

    def is_finished(self) -> bool:
        """Tell whether every proposed trial has a result and there is no further one to propose."""
        return not self.unended() and self.next_proposal() is None

    def forget_failures(self) -> None:
        """Let the trials that failed before run again."""
        for number in self.failures():
            (self.trial_folder(number) / "failed.json").unlink()

    def next_proposal(self) -> Proposal | None:
        """Return the next trial's point; None if the space or the budget is exhausted."""
        number, sweep = len(self), self.sweep
        if (sweep.trials and number >= sweep.trials) or self._spent():
            return None
        return sweep.proposer().propose(
            [self._known(earlier, earlier + sweep.ahead <= number) for earlier in range(number)]
        )

    def propose(self) -> int | None:
        """Write down the next trial and return its number; None if there is none."""
        if (proposal := self.next_proposal()) is None:
            return None
        number = len(self)
        self._write_proposal(number, proposal)
        return number

    def can_propose(self) -> bool:
        """Tell whether all trials that the next proposal looks at have ended."""
        if self.sweep.search in ("grid", "random"):
            return True
        return all(self.has_ended(number) for number in range(len(self) + 1 - self.sweep.ahead))

    def point(self, number: int) -> Point:
        """Return a trial's point in the space as it is now.

        A field that the space has gained since has the base experiment's value. A field that was dropped is there only
        where the trial has another value than the base experiment.
        """
        point: Point = self._read(number, "proposal.json")["point"]
        base = {field: value_of(self.sweep.experiment, field) for field in (*self.sweep.space, *point)}
        return {
            field: value for field, value in (base | point).items() if field in self.sweep.space or value != base[field]
        }

    def scores(self, number: int) -> dict[int, Row]:
        """Return updates -> score of a trial."""
        return {int(step): score for step, score in (self._read(number, "scores.json") or {}).items()}

    def write_scores(self, number: int, scores: Mapping[int, Row]) -> None:
        """Keep the scores of a trial."""
        write_json(self.trial_folder(number) / "scores.json", scores)

    def result(self, number: int) -> Row | None:
        """Return a trial's row, with every field that is swept now; None if it has not ended."""
        row: Row | None = self._read(number, "result.json")
        return row and {"trial": row["trial"]} | self.point(number) | row

    def write_result(self, number: int, row: Row) -> None:
        """End a trial."""
        write_json(self.trial_folder(number) / "result.json", {"trial": trial_name(number)} | row)

    def fail(self, number: int, error: str) -> None:
        """Say that a trial cannot go on, so that nobody waits for it."""
        write_json(self.trial_folder(number) / "failed.json", {"error": error})

    def failures(self) -> dict[int, str]:
        """Return number -> error of the trials that failed."""
        notes = {number: self._read(number, "failed.json") for number in range(len(self))}
        return {number: note["error"] for number, note in notes.items() if note}

    def has_ended(self, number: int) -> bool:
        """Tell whether a trial has a result, or failed."""
        return any((self.trial_folder(number) / name).is_file() for name in ("result.json", "failed.json"))

    def rows(self) -> list[Row]:
        """Return the table: the rows of the trials that have ended, in their order."""
        return [row for number in range(len(self)) if (row := self.result(number)) is not None]

    def best(self) -> Row | None:
        """Return the row of the best trial that was trained to its end and has a finite score, the first of equals."""
        finished = {row["trial"]: row for row in self.rows() if row["state"] == "finished"}
        best = select_best({trial: row[self.sweep.objective] for trial, row in finished.items()}, "max")
        return None if best is None else finished[best]

    def _known(self, number: int, seen: bool) -> Known:
        proposal, row = self._read(number, "proposal.json"), self.result(number)
        scores = None
        if seen and row is not None:
            scores = tuple(math.nan if row[name] is None else float(row[name]) for name in self.sweep.objectives)
        stopped_at = row["cost/gradient_steps"] if row is not None and row["state"] == "stopped" else None
        return Known(self.point(number), scores, stopped_at, proposal["notes"])

    def _spent(self) -> bool:
        rows, sweep = self.rows(), self.sweep
        hours = sum(row["time/seconds"] for row in rows) / 3600
        steps = sum(row["cost/environment_steps"] for row in rows)
        return bool(
            (sweep.trial_hours and hours >= sweep.trial_hours)
            or (sweep.environment_steps and steps >= sweep.environment_steps)
        )

    def _write_proposal(self, number: int, proposal: Proposal) -> None:
        document = {"point": proposal.point, "notes": proposal.notes}
        write_json(self.trial_folder(number) / "proposal.json", document)

    def _read(self, number: int, name: str) -> Any:
        path = self.trial_folder(number) / name
        return json.loads(path.read_text()) if path.is_file() else None
