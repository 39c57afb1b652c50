"""Stripe: its signatures, and its events in all the shapes that they come in."""
