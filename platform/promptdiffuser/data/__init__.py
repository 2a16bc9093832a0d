"""Trajectories: in memory, on storage, and as the windows and prompts that training gathers from them."""
