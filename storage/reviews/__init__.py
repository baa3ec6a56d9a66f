"""The review database: studies, raters, votes, chains."""
