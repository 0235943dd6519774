"""The one exception that is shown to a user without a traceback."""


class UserError(ValueError):
    """A mistake in configuration, data or files: one sentence that names the thing and what would be right."""
