"""Shards made by workers: threads, processes, Ray or Dask."""

__all__ = ["fanout", "prefect_server", "runners", "shard_worker", "shardwise"]
