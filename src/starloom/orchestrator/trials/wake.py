"""Wakes a stopped process after a while, from a process of its own, so that nobody has to wait for it.

python -m starloom.orchestrator.trials.wake PIDFD SECONDS
"""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress


def wake_later(pid: int, seconds: float) -> None:
    """Sends SIGCONT after `seconds`, also if this process has ended by then. Raises ProcessLookupError."""
    # By a descriptor, as another process may have the number by then.
    process = os.pidfd_open(pid)
    try:
        subprocess.Popen(
            [sys.executable, "-m", __name__, str(process), str(seconds)],
            stdin=subprocess.DEVNULL,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            pass_fds=(process,),
            start_new_session=True,
        )
    finally:
        os.close(process)


def main() -> None:
    """Sleeps, and wakes."""
    time.sleep(float(sys.argv[2]))
    with suppress(ProcessLookupError):
        signal.pidfd_send_signal(int(sys.argv[1]), signal.SIGCONT)


if __name__ == "__main__":
    main()
