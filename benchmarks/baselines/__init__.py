"""Common alternative servers, each an independent script as a user would write it."""
