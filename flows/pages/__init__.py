"""The page of a store's runs, reports and leaderboard, for a browser; `popalign serve` serves it."""

__all__ = ["pages_app", "serve_command"]
