"""The review app: people judge, in a browser; `popalign review` serves it, `popalign study` makes and reads studies."""
