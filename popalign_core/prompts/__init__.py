"""Prompts: where neutral and generic ones come from, and what makes one acceptable."""
