"""Sign a certificate with the user's own Ed25519 key, and hold a signature against the public key.

Keys are files as ``openssl genpkey -algorithm ed25519`` or ``ssh-keygen -t ed25519`` writes them, without a password.
"""

from __future__ import annotations

import base64
import importlib.util
from collections.abc import Callable
from pathlib import Path
from typing import Any

from converter.errors import CheckError
from converter.files import reason

# It stands before what is signed, so that the key's signature of something else never passes for a certificate's.
PURPOSE = b"gpt2onnx certificate\n"

Sign = Callable[[str], str]  # takes the certificate's hash, returns the signature


def signer(key: Path) -> Sign:
    """Return the function that signs with the private key in a file.

    Raises:
        CheckError: there is no such key in it, or the package that signs is missing.
    """
    private = _load(key, "private")
    return lambda seal: base64.b64encode(private.sign(PURPOSE + seal.encode())).decode()


def is_signed(seal: str, signature: Any, key: Path) -> bool:
    """Tell whether ``signature`` is that of a certificate's hash, by the public key in a file.

    Raises:
        CheckError: there is no such key in it, or the package that reads it is missing.
    """
    public = _load(key, "public")
    from cryptography.exceptions import InvalidSignature

    try:
        public.verify(base64.b64decode(signature, validate=True), PURPOSE + seal.encode())
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def _load(file: Path, kind: str) -> Any:
    """Return the ``private`` or ``public`` Ed25519 key in a file, in OpenSSL's form or in OpenSSH's."""
    if importlib.util.find_spec("cryptography") is None:
        raise CheckError("a signature needs cryptography; install it with: pip install 'gpt2onnx[sign]'")
    from cryptography.exceptions import UnsupportedAlgorithm
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ed25519

    forms: dict[str, tuple[type, Callable[[bytes], Any], Callable[[bytes], Any]]] = {
        "private": (
            ed25519.Ed25519PrivateKey,
            lambda data: serialization.load_pem_private_key(data, password=None),
            lambda data: serialization.load_ssh_private_key(data, password=None),
        ),
        "public": (
            ed25519.Ed25519PublicKey,
            serialization.load_pem_public_key,
            serialization.load_ssh_public_key,
        ),
    }
    wanted, *readers = forms[kind]
    try:
        data = file.read_bytes()
    except OSError as error:
        raise CheckError(f"{file} cannot be read: {reason(error)}") from error
    for read in readers:
        try:
            key = read(data)
        except (ValueError, TypeError, UnsupportedAlgorithm):
            continue
        if isinstance(key, wanted):
            return key
    raise CheckError(
        f"{file} holds no {kind} Ed25519 key that can be read without a password; "
        f"make a pair with: ssh-keygen -t ed25519"
    )
