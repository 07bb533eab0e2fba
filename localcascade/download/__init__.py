"""Fetching models from a Hub: which files, in checked ranges, resumed and verified."""
