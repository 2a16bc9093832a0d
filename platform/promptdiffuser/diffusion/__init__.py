"""Noise schedules, the forward process, the reverse chain, and the space that prompts are diffused in."""
