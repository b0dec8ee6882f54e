"""A steady load for minutes on a cluster of this machine, and what of it grows."""
