"""Checks that the columns which a configuration reads exist."""

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting.templates import compile_template, names_read

FIELDS = {"template": ["input_column"], "chat": ["messages_column", "answer_column"], "text": ["text_column"]}
"""Style → fields that name a column; `references` does in all of them."""

DEFAULT_INPUT = FormattingConfig.model_fields["input_column"].default


def _named(config: FormattingConfig) -> list[tuple[str, str]]:
    """Field and column."""
    given = [(field, getattr(config, field)) for field in FIELDS[config.style]]
    return [("references", name) for name in config.references] + [(field, name) for field, name in given if name]


def columns_read(config: FormattingConfig) -> set[str]:
    """The columns that a configuration reads.

    Raises:
        UserError: a template is not Jinja2.
    """
    names = {name for _, name in _named(config)}
    if config.style != "template":
        return names
    return names.union(*(names_read(getattr(config, part), f"formatting.{part}") for part in ("prompt", "completion")))


def check_columns(config: FormattingConfig, columns: set[str]) -> None:
    """
    Raises:
        UserError: a column that is named in the configuration is not there.
    """
    for field, name in _named(config):
        if name not in columns and (field != "input_column" or name != DEFAULT_INPUT):
            raise UserError(
                f"formatting.{field}: no column is called {name}; the data has {', '.join(sorted(columns))}."
            )
    if config.style == "template":
        compile_template(config.prompt, "formatting.prompt", columns)
        compile_template(config.completion, "formatting.completion", columns)
