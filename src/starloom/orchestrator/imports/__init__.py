"""Constellations from the files of others. Pure: bytes in, a constellation out, or one error with all that is wrong."""
