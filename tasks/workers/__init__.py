"""Shards made by workers: threads, processes, Ray or Dask; and whole stages side by side, each in its process."""

__all__ = ["aside", "fanout", "prefect_server", "runners", "shard_worker", "shardwise"]
