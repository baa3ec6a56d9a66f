"""What leaves the store: the folder of a finished run, the leaderboard, exports."""

__all__ = ["export", "export_model", "finished_run", "leaderboard", "published_model", "published_runs"]
