"""The model store: which models there are, where they come from, and verified files on disk."""
