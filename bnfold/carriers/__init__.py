"""Carriers: how a channel affine passes through an operator that is not linear in it."""
