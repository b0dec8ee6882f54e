"""Trains the language family that ships with Starloom; README.md beside this file says how."""
