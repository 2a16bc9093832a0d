"""The peak of a process's memory, against a known allocation."""

import numpy as np

from promptdiffuser.memory import forget_peak, peak_gib

GIB = 2**30


def test_the_peak_rises_by_what_is_held_and_is_forgotten() -> None:
    forget_peak()
    before = peak_gib()
    held = np.ones(GIB // 4, np.uint8)
    assert 0.2 < peak_gib() - before < 0.3
    del held
    assert peak_gib() - before > 0.2
    forget_peak()
    assert peak_gib() - before < 0.05
