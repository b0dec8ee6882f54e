"""Faults on a live cluster: what is done to it, what is seen of it, and whether a job came out as if undisturbed."""
