"""The review app: people judge, in a browser; `popalign review` serves it, `popalign study` makes and reads studies."""

__all__ = [
    "app",
    "commands",
    "create_commands",
    "curator_pages",
    "guard",
    "operator_pages",
    "rater_pages",
    "request_timeouts",
    "server_settings",
    "serving",
    "sessions",
    "study_arguments",
    "study_text",
    "templating",
]
