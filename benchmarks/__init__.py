"""Measurements. Every figure that the README or docs state is a row of claims.toml."""
