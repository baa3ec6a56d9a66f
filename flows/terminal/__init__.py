"""What commands share: options as a configuration, progress, printed tables."""
