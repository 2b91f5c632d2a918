"""The database: feedback, versions, deployments, jobs, events and API keys."""
