"""Ray as it is started here, in a process of its own: one process holds one Ray."""

import subprocess
import sys
from pathlib import Path

import pytest

# A wait of no seconds is how a stalled machine looks to Ray: its first process does not answer in time.
STALLED = """
import os, sys
from pathlib import Path
import psutil, ray
from starloom.dag.errors import Unavailable
from starloom.orchestrator.raycluster import RayCluster

real, folders = ray.init, []
def init(**options):
    folders.append(options["_temp_dir"])
    print(os.environ["RAY_gcs_server_port_wait_time_s"])
    os.environ["RAY_gcs_server_port_wait_time_s"] = "0"
    return real(**options)
ray.init = init
cluster = RayCluster(("a",), Path(sys.argv[1]))
try:
    cluster.start()
except Unavailable as error:
    print(str(error).partition("file")[0])
left = [child.name() for child in psutil.Process().children(recursive=True) if child.status() != psutil.STATUS_ZOMBIE]
print(left, [folder for folder in folders if os.path.exists(folder)])
"""


@pytest.mark.ray
@pytest.mark.slow
def test_a_start_that_fails_is_told_and_leaves_nothing(tmp_path: Path) -> None:
    done = subprocess.run(
        [sys.executable, "-c", STALLED, str(tmp_path)], capture_output=True, text=True, check=True, timeout=60
    )
    assert done.stdout.splitlines() == ["90", "Ray did not start: Timed out waiting for ", "[] []"]
