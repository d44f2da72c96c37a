"""Commands that change media as a whole: sanitize, format, self-test, protection, namespace management."""
