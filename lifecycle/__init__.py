"""The loop: checks what is served, retrains, proves, promotes, goes back, tells people."""
