"""How good the pictures are: scorers of one picture and its prompt, and distances between sets of pictures."""
