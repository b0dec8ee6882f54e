"""What runs on a node: the stage API, the stages, the model store, sessions and transport."""

import os
from typing import Final

TELEMETRY_SWITCH: Final = "ORT_DISABLE_TELEMETRY"
"""ONNX Runtime reports its use to its maker unless this is in the environment before it is imported."""

os.environ.setdefault(TELEMETRY_SWITCH, "1")
