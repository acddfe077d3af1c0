"""Tests of tools/measure."""
