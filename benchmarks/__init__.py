"""Measurements that are printed, not asserted; run by make targets."""
