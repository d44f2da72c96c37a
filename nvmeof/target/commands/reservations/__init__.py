"""Reservation commands, their features, and the admission check that enforces reservations."""
