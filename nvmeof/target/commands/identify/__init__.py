"""Identify: one function for each data structure (CNS)."""
