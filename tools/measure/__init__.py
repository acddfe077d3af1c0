"""Measuring: repeats and spreads, peers, the demo's tour."""
