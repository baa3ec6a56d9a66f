"""Prompts: where neutral and generic ones come from, and what makes one acceptable."""

__all__ = [
    "answers",
    "benchmarks",
    "checks",
    "endpoint",
    "grammar",
    "lists",
    "loose_json",
    "matching",
    "pacing",
    "sifting",
    "similar",
    "synthesis",
    "words",
]
