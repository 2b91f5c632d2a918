"""Shadow and canary releases: starts, advances, holds or takes back a version on trial."""
