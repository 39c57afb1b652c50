"""A cloud credential for the demo to hand over: well-formed, and good for nothing."""

import secrets

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import rsa


def service_account() -> dict[str, str]:
    """A Google service account's key file, of the right form and of no account."""
    key = rsa.generate_private_key(public_exponent=65537, key_size=2048)
    pem = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    ).decode()
    return {
        "type": "service_account",
        "project_id": "acme-gcp-project",
        "private_key_id": secrets.token_hex(20),
        "private_key": pem,
        "client_email": "billing-reader@acme-gcp-project.iam.gserviceaccount.com",
        "client_id": "100000000000000000000",
        "token_uri": "https://oauth2.googleapis.com/token",
    }
