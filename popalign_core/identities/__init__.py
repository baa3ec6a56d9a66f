"""Identities: neutral prompts augmented with the classes of every axis."""

__all__ = ["augment", "random_identities"]
