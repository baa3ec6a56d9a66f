"""Shards made by workers: threads, processes, Ray or Dask."""

__all__ = ["fanout", "runners", "shard_worker", "shardwise"]
