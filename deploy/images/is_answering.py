"""Tells a container engine whether the Triton in its container answers; with nothing but Python's own library.

`ready` fails until the model answers, and when it fails. `alive` fails where only a restart helps: Triton does not
answer at all, or calls the model ready and fails every request, as it does when its Python has died. One that is
merely busy is both, for taking it away would make the others busier.
"""

import json
import sys
import urllib.error
import urllib.request

_TIMEOUT_S = 10.0
_TEXT = {"name": "TEXT", "shape": [1, 1], "datatype": "BYTES", "data": ["ready?"]}


def main(wanted: str, address: str = "http://127.0.0.1:8003") -> str:
    """Why the Triton at `address` is not `ready` or `alive`; empty where it is."""
    try:
        _ask(f"{address}/v2/health/live")
        _ask(f"{address}/v2/models/sentiment/ready")
    except urllib.error.HTTPError as error:
        return f"the model is not loaded (HTTP {error.code})" if wanted == "ready" else ""
    except OSError as error:
        return f"Triton does not answer: {error}"
    try:
        _ask(f"{address}/v2/models/sentiment/infer", {"inputs": [_TEXT]})
    except urllib.error.HTTPError as error:
        return f"the model fails: {error.read(500).decode(errors='replace')}"
    except TimeoutError:
        return ""
    except OSError as error:
        return f"Triton does not answer: {error}"
    return ""


def _ask(url: str, body: object = None) -> None:
    data = None if body is None else json.dumps(body).encode()
    # Without proxies: Docker can put proxy variables into every container.
    opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
    with opener.open(urllib.request.Request(url, data), timeout=_TIMEOUT_S) as answer:
        answer.read()


if __name__ == "__main__":
    # `sys.exit("")` would fail.
    sys.exit(main(*sys.argv[1:]) or 0)
