"""Nothing that runs on a node reports to anybody."""

import os
import subprocess
import sys
from pathlib import Path

from starloom.agents import TELEMETRY_SWITCH

IMPORT = "import starloom.agents.sessions, starloom.agents.probe"


def test_onnx_runtime_keeps_no_identity_to_report(tmp_path: Path) -> None:
    environment = {name: value for name, value in os.environ.items() if name != TELEMETRY_SWITCH}
    environment |= {"TMPDIR": str(tmp_path), "HOME": str(tmp_path)}
    subprocess.run([sys.executable, "-B", "-c", IMPORT], env=environment, check=True)
    assert list(tmp_path.rglob("*")) == []
