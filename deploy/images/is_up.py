"""Tells a container engine whether the server at an address in its container answers GET with 200.

`python is_up.py http://127.0.0.1:8000/health/ready`, without proxies: Docker can put proxy variables into containers.
"""

import http.client
import sys
from urllib.parse import urlsplit


def main(address: str) -> bool:
    """Return whether the server answers with 200 within 4 seconds."""
    url = urlsplit(address)
    connection = http.client.HTTPConnection(url.hostname or "", url.port, timeout=4)
    try:
        connection.request("GET", url.path)
        return connection.getresponse().status == 200
    except (OSError, http.client.HTTPException):
        return False
    finally:
        connection.close()


if __name__ == "__main__":
    sys.exit(not main(*sys.argv[1:]))
