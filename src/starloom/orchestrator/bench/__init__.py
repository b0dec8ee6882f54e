"""Benchmarks: Starloom beside others, side by side in one run. `cli.bench` lists them."""
