"""Trusted execution: evidence of what code runs, its verification, and messages sealed to that code."""
