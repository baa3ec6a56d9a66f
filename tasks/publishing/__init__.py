"""What leaves the store: the folder of a finished run, the leaderboard, exports."""
