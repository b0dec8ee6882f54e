"""The process that takes a snapshot, for tests in which few jobs are kept: `python -m tests.orchestrator.fewkept JOURNAL`."""

import sys

from starloom.dag import limits
from starloom.orchestrator.snapshots import main

KEPT = 2

if __name__ == "__main__":
    setattr(limits, "FINISHED_JOBS_KEPT", KEPT)  # noqa: B010
    sys.exit(main(sys.argv[1:]))
