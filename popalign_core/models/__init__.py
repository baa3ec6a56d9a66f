"""Models: which weights a name means, how they are loaded, and their parts."""
