"""Lines of the log for people: whatever a peer's name or text has in it, a record's message stays one line of text."""

from __future__ import annotations

import logging


class LineFormatter(logging.Formatter):
    """As `logging.Formatter`, with control characters of the message escaped: a terminal would obey them, and a line
    break would begin a line that nobody has written. A traceback, which is our own text, keeps its lines."""

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the record's line."""
        message = record.message
        if not message.isprintable():
            record.message = "".join(char if char.isprintable() else ascii(char)[1:-1] for char in message)
        return super().formatMessage(record)


def to_stderr(level: int, form: str, dates: str | None = None) -> None:
    """Write the log to standard error in this form, as `logging.basicConfig` would, by a `LineFormatter`."""
    handler = logging.StreamHandler()
    handler.setFormatter(LineFormatter(form, dates))
    logging.basicConfig(level=level, handlers=[handler])
