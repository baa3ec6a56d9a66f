"""Prompts: where neutral and generic ones come from, and what makes one acceptable."""

__all__ = [
    "answers",
    "benchmarks",
    "carriers",
    "checks",
    "endpoint",
    "grammar",
    "lists",
    "loose_json",
    "matching",
    "pacing",
    "people",
    "service_errors",
    "sifting",
    "similar",
    "synthesis",
    "words",
]
