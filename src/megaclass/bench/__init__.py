"""Measurements: cases, each in processes of its own, that become the rows of :mod:`megaclass.results.rows`."""
