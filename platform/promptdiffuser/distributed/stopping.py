"""Stopping poor trials early: Ray Tune's ASHA and median rules, told of the trials in the order of their numbers.

Inside Tune these schedulers decide by what happens to have arrived, so no two sweeps stop the same trials. Here a trial
that reaches a milestone waits until every earlier trial has reached it or has ended, and the rule is told of these and
nothing else. Its decision then depends on scores alone: a sweep that was killed goes on as if it had not been.
"""

import math
import time
from typing import Any

from ray.tune.experiment import Trial as TuneTrial
from ray.tune.schedulers import ASHAScheduler, MedianStoppingRule, TrialScheduler

from promptdiffuser.sweeps.ledger import Ledger, Row, trial_name
from promptdiffuser.sweeps.sweep import Sweep

POLL_SECONDS = 0.2
SCORE, STEP = "score", "step"


def stops(ledger: Ledger, number: int, step: int, steps: int) -> bool:
    """Wait for the trials before this one, then tell whether it is stopped after `step` of its `steps` updates.

    A trial whose score is not a finite number is stopped, and the rule compares no other with it.
    """
    if ledger.sweep.stopping not in ("asha", "median"):
        return False
    if not _has_finite_score(ledger, ledger.scores(number)[step]):
        return True
    for earlier in range(number):
        while not (ledger.has_ended(earlier) or step in ledger.scores(earlier)):
            time.sleep(POLL_SECONDS)
    rule, decision = _rule(ledger.sweep, steps), TrialScheduler.CONTINUE
    for told in range(number + 1):
        trial = TuneTrial(trial_name(told), trial_id=trial_name(told), stub=True)
        rule.on_trial_add(None, trial)
        for reached, score in sorted(ledger.scores(told).items()):
            if reached <= step and _has_finite_score(ledger, score):
                decision = rule.on_trial_result(None, trial, {STEP: reached, SCORE: score[ledger.sweep.objective]})
    return bool(decision == TrialScheduler.STOP)


def _has_finite_score(ledger: Ledger, score: Row) -> bool:
    return math.isfinite(score[ledger.sweep.objective])


def _rule(sweep: Sweep, steps: int) -> Any:
    """Return a rule that knows no trial yet."""
    if sweep.stopping == "asha":
        return ASHAScheduler(
            time_attr=STEP,
            metric=SCORE,
            mode="max",
            max_t=steps,
            grace_period=sweep.score_every,
            reduction_factor=sweep.reduction,
        )
    never: Any = math.inf  # sooner it would ask a running controller whether other trials wait for their turn
    return MedianStoppingRule(
        time_attr=STEP, metric=SCORE, mode="max", grace_period=sweep.score_every, min_time_slice=never
    )
