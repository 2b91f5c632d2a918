"""Headers that stop browsers from using a response for anything but its purpose."""

Header = tuple[bytes, bytes]

_NOTHING = "default-src 'none'; frame-ancestors 'none'; base-uri 'none'; form-action 'none'"
"""Policy for data responses: nothing in them is run or loaded, and no page may show them in a frame."""


def security_headers(
    is_https: bool, content_policy: str = _NOTHING, cache: str = "no-store", referrer: str = "no-referrer"
) -> list[Header]:
    """Return the security headers of a response."""
    headers = {
        "x-content-type-options": "nosniff",
        "content-security-policy": content_policy,
        "referrer-policy": referrer,
        "cross-origin-resource-policy": "same-origin",
        "cache-control": cache,
    }
    if is_https:
        headers["strict-transport-security"] = "max-age=31536000"
    return [(name.encode(), value.encode()) for name, value in headers.items()]
