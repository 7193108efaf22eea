"""MLflow's webhook: the registry says that an alias was moved, and is asked at once instead of at the next poll.

What it says is not believed, only that it is worth asking: see `Deployment.check`. MLflow signs what it sends
(mlflow.org, "Webhooks": HMAC-SHA256 of delivery id, timestamp and body).
"""

import base64
import hashlib
import hmac
import time
from collections.abc import Mapping

SECRET_VARIABLE = "WATCHNEXT_WEBHOOK_SECRET"
PATH = "/webhooks/registry"

_OLDEST_S = 300.0
"""A message that was recorded by somebody else is of no use to them for longer."""


def is_signed(secret: str, headers: Mapping[str, str], body: bytes) -> bool:
    """Whether a message comes from who knows the secret, and is of now.

    Args:
        secret: as the webhook was made with.
        headers: of the request, by name in lower case.
        body: of the request.
    """
    delivery = headers.get("x-mlflow-delivery-id", "")
    timestamp = headers.get("x-mlflow-timestamp", "")
    if not (timestamp.isascii() and timestamp.isdigit() and len(timestamp) < 16):
        return False
    signed = f"{delivery}.{timestamp}.".encode() + body
    digest = hmac.new(secret.encode(), signed, hashlib.sha256).digest()
    expected = b"v1," + base64.b64encode(digest)
    is_theirs = hmac.compare_digest(headers.get("x-mlflow-signature", "").encode(), expected)
    return is_theirs and abs(time.time() - int(timestamp)) <= _OLDEST_S
