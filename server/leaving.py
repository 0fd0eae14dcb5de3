"""The end of a process that has threads."""

from __future__ import annotations

import os
import sys
import threading

_THREAD_S = 0.2  # for a thread without work to see that it is no longer needed


def leave_threads(status: int) -> None:
    """Ends the process at once where a thread still works, such as on a long text that nobody waits
    for any more. Python would wait for it, a minute perhaps, or, where it is a daemon, take the
    interpreter away under native code that is about to return to it.
    """
    main = threading.main_thread()
    others = [each for each in threading.enumerate() if each is not main]
    for thread in others:
        thread.join(_THREAD_S)
    if any(thread.is_alive() for thread in others):
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)
