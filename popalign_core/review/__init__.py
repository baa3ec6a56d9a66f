"""People as judges: which pairs a study is made of, who is asked what in which order, and what the answers say."""

__all__ = ["curated", "curating", "human_sets", "labels", "pairing", "plan", "results", "screen"]
