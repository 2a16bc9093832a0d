"""Work in a thread of its own, for as long as the body of a `with` statement runs."""

import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager


@contextmanager
def beside(work: Callable[[threading.Event], None], name: str | None = None) -> Iterator[None]:
    """Run a function in a thread while the body runs, and wait for its end.

    Args:
        work: Is given an event that is set once the body has ended, and has to return then.
        name: Name of the thread.
    """
    stop = threading.Event()
    thread = threading.Thread(target=work, args=(stop,), daemon=True, name=name)
    thread.start()
    try:
        yield
    finally:
        stop.set()
        thread.join()


@contextmanager
def repeatedly(act: Callable[[], None], seconds: float) -> Iterator[None]:
    """Call a function every so many seconds while the body runs."""

    def repeat(stop: threading.Event) -> None:
        while not stop.wait(seconds):
            act()

    with beside(repeat):
        yield
