"""Starloom runs a constellation of stages across device, edge and cloud nodes."""

__version__ = "0.1.0"
