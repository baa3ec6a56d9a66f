"""Studies by people: made from what a run sampled, and what came of them."""

__all__ = ["curation", "labelling", "pairwise", "study_records", "study_results"]
