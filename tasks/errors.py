"""The one exception that is shown to a user without a traceback."""

from tasks.text import visible


class UserError(ValueError):
    """A mistake in configuration, data or files: one sentence that names the thing and what would be right.

    Args:
        sentences: one for each mistake. What they quote of the data stays on its line.
    """

    def __init__(self, *sentences: str) -> None:
        super().__init__("\n".join(map(visible, sentences)))
