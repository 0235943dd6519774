"""The commands of `qlora-flow`, one module each.

A command's module has a docstring (its help text), `add_arguments(parser)` and `main(options)`, which returns the exit
status. Slow imports are inside its functions, so that `--help` answers at once.

The commands use argparse. pydantic-settings validates flags before the file is read; here a flag overrides a field of
the file, and a mistake in either gets the same sentence.
"""
