"""What commands share: options as a configuration, progress, printed tables."""

__all__ = ["arguments", "options", "progress", "terminal_tables"]
