"""Keys by which versions are signed in tests."""

from __future__ import annotations

from pathlib import Path

from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec


def write_key_pair(folder: Path) -> dict[str, str]:
    """Write a private and a public key to a folder; returns the section `registry` of settings that name them."""
    key = ec.generate_private_key(ec.SECP256R1())
    private, public = folder / "key", folder / "key.pub"
    encoding, no_password = serialization.Encoding.PEM, serialization.NoEncryption()
    private.write_bytes(key.private_bytes(encoding, serialization.PrivateFormat.PKCS8, no_password))
    public.write_bytes(key.public_key().public_bytes(encoding, serialization.PublicFormat.SubjectPublicKeyInfo))
    return {"sign": str(private), "verify": str(public)}
