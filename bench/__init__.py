"""Measurements of speed, each beside its peer in the same process and run: `python -m bench`."""
