"""What commands share: options as a configuration, progress, printed tables."""

__all__ = ["arguments", "fetch_tables", "options", "progress", "terminal_tables"]
