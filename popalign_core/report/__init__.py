"""The report: one self-contained HTML page from tables and pictures."""
