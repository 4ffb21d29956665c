"""A user's own package of parts: small ones that need nothing but torch, so that a child process starts fast."""
