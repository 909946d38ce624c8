"""Checkpoints: what one is, what a file must pass before it is used, and how one is written."""
