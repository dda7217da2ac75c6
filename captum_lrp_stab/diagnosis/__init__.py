"""Diagnosis: where relevance is lost, amplified or destroyed, and what to do about it."""
