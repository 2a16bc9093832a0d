"""Episodes: lockstep stepping, policies, blocks, results and rendering."""
