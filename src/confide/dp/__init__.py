"""Differential privacy of records: the plan, its mechanism and its accounting."""
