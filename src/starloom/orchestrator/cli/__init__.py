"""The command line: one module for each family of commands; `cli.main` puts them together."""
