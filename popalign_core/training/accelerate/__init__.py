"""Configurations for `accelerate launch`, by the names that `runtime.accelerate_config` takes."""

__all__ = []
