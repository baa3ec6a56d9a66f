"""One module a stage, and what a few of them share."""
