"""What leaves the store: the folder of a finished run, the leaderboard, exports."""

__all__ = ["export", "finished_run", "leaderboard", "published_model", "published_runs"]
