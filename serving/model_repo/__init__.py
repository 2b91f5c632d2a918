"""The model repository: bundles, published versions, the deployed version, and the switch to another one."""
