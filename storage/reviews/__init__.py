"""The review database: studies, raters, votes, chains."""

__all__ = ["chain_steps", "passwords", "review_engine", "review_tables", "votes"]
