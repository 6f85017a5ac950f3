"""Benchmarks against other tools, each reproducible by one command."""
