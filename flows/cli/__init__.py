"""The command line: `popalign`."""

from flows.cli.app import app, main

__all__ = ["app", "main"]
