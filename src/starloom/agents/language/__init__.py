"""The language stage: the family's prompt format, and how its quality is measured."""
