"""Studies by people: made from what a run sampled, and what came of them."""
