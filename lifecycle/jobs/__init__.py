"""Scheduler, checks, retraining and notification."""
