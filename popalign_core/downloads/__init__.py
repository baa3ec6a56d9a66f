"""Downloading public weights: which files, under which license, each checked. Only `popalign fetch` does it."""

__all__ = ["download_errors", "file_choice", "file_records", "licenses", "remote_files", "transfer"]
