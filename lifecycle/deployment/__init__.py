"""Promotion, rollback, rollout, repair, and monitoring after a promotion."""
