"""What a run is made of: the table of steps, their plan, and the runs, comparisons and sweeps that carry it out."""
