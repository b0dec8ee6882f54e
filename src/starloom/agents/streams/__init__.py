"""Streams between stages: what is kept, who reads how far, windows and joins, and the shells around them."""
