"""Tests of tools/synthetic."""
