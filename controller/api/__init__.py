"""The HTTP/JSON API v1: one operation table; routes, validation, the CLI's calls and docs/api.md come from it."""
