"""The 1-D experiment of the paper (section 5, appendix F): what an objective does to mass it is not told about."""

__all__ = ["experiment", "experiment_page", "mixture"]
