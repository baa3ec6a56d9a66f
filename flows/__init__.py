"""Flows that chain the stages, and the command line."""
