"""Evaluation: images' statistics in, metrics with intervals out."""
