"""The commands of `qlora-flow`, a module each.

A command's module has a docstring (its help text), `add_arguments(parser)` and `main(options)`, which returns the exit
status. It imports what is slow to import within its functions: `--help` answers at once.

argparse and not pydantic-settings, whose flags become values of the model's types before the file is read: here a flag
lays over the file's field and gets the sentence that the same mistake gets in a file.
"""
