"""Notifications: an outbox that follows the log, and the delivery of what it holds by mail and to endpoints."""
