"""The host's command line: options, output, and one module per family of commands."""
