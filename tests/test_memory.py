"""The peak of a process's memory, against a known allocation."""

from mmap import mmap

from promptdiffuser.memory import forget_peak, peak_gib

GIB = 2**30


def test_the_peak_rises_by_what_is_held_and_is_forgotten() -> None:
    forget_peak()
    before = peak_gib()
    held = mmap(-1, GIB // 4)  # goes back when it is closed, whatever the allocator has been told to keep
    for page in range(0, GIB // 4, 4096):
        held[page] = 1
    assert 0.2 < peak_gib() - before < 0.3
    held.close()
    assert peak_gib() - before > 0.2
    forget_peak()
    assert peak_gib() - before < 0.05
