"""A process that takes a snapshot and never comes to an end, for tests: `python -m tests.orchestrator.hangs JOURNAL`."""

import signal

if __name__ == "__main__":
    signal.pause()
