"""Shards made by workers: threads, processes, Ray or Dask."""
