"""The review app: people judge, in a browser; `popalign review` serves it, `popalign study` makes and reads studies."""

__all__ = [
    "app",
    "commands",
    "create_commands",
    "curator_pages",
    "guard",
    "lines",
    "opening",
    "operator_pages",
    "patience",
    "rater_pages",
    "server_settings",
    "sessions",
    "templating",
]
