"""Checks that the columns which a configuration reads exist."""

from tasks.config import FormattingConfig
from tasks.errors import UserError
from tasks.formatting.templates import compile_template, names_read


def columns_read(config: FormattingConfig) -> set[str]:
    """The columns that a configuration reads.

    Raises:
        UserError: a template is not Jinja2.
    """
    if config.style == "text":
        return {config.text_column, *config.references}
    if config.style == "chat":
        return {config.messages_column, *config.references} | ({config.answer_column} - {""})
    names = names_read(config.prompt, "formatting.prompt") | names_read(config.completion, "formatting.completion")
    return names | {config.input_column, *config.references}


def check_columns(config: FormattingConfig, columns: set[str]) -> None:
    """
    Raises:
        UserError: a column that is named in the configuration is not there.
    """
    fields = [("references", name) for name in config.references]
    if config.style == "chat":
        fields.append(("messages_column", config.messages_column))
        fields += [("answer_column", config.answer_column)] if config.answer_column else []
    elif config.style == "text":
        fields.append(("text_column", config.text_column))
    elif config.input_column not in ("", FormattingConfig.model_fields["input_column"].default):
        fields.append(("input_column", config.input_column))
    for field, name in fields:
        if name not in columns:
            raise UserError(
                f"formatting.{field}: no column is called {name}; the data has {', '.join(sorted(columns))}."
            )
    if config.style == "template":
        compile_template(config.prompt, "formatting.prompt", columns)
        compile_template(config.completion, "formatting.completion", columns)
