"""How a command ends: its exit status, and what signals do."""

import signal
import sys
import threading
from collections.abc import Iterator
from contextlib import contextmanager

from promptdiffuser.errors import UserError


@contextmanager
def exit_status() -> Iterator[None]:
    """Turn what ends a job into its exit status; SIGTERM, which Slurm and Kubernetes send, ends it as Ctrl-C does.

    Python drops an exception that a signal raises in a finaliser or in the callback of a weak reference, and the job
    would go on: such a signal is sent again.
    """
    ended_by = signal.SIGINT

    def terminate(number: int, frame: object) -> None:
        # Ray raises a new KeyboardInterrupt in the place of one that interrupts its calls, so the exception cannot say.
        nonlocal ended_by
        ended_by = signal.SIGTERM
        raise KeyboardInterrupt

    def send_dropped_signal_again(dropped: "sys.UnraisableHookArgs") -> None:
        if not isinstance(dropped.exc_value, KeyboardInterrupt):
            print_dropped(dropped)
            return
        again = threading.Timer(0.1, signal.pthread_kill, (threading.main_thread().ident, ended_by))
        again.daemon = True
        again.start()

    print_dropped, sys.unraisablehook = sys.unraisablehook, send_dropped_signal_again
    before = signal.signal(signal.SIGTERM, terminate)
    try:
        yield
    except UserError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(2)
    except KeyboardInterrupt:
        how = "interrupted" if ended_by == signal.SIGINT else "terminated"
        print(f"{how}; the same command continues where this one stopped", file=sys.stderr)
        sys.exit(128 + ended_by)
    finally:
        signal.signal(signal.SIGTERM, before)
        sys.unraisablehook = print_dropped
