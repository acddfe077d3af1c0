"""Procedural photographs for the demo and the tests."""
