"""Heads of this package."""
