"""Tests of tools/figures."""
