"""The built-in stages, one module for each sense."""
