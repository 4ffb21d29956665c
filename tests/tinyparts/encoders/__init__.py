"""Encoders of this package."""
