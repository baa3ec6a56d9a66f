"""People as judges: which pairs a study is made of, who is asked what in which order, and what the answers say."""

__all__ = [
    "curation_chains",
    "curation_results",
    "human_sets",
    "labels",
    "pairing",
    "rater_plan",
    "screen_images",
    "vote_results",
]
