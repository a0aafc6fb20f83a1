"""A certificate that is signed with the user's own key."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from converter import check, convert
from converter.errors import CheckError
from converter.files import read_json
from converter.folder.certificate import verify, write
from converter.folder.signature import is_signed, signer

pytest.importorskip("cryptography", reason="the extra sign is not installed")

from cryptography.hazmat.primitives import serialization as to
from cryptography.hazmat.primitives.asymmetric import ec, ed25519

FORMS = {
    "openssl": (to.Encoding.PEM, to.PrivateFormat.PKCS8, to.PublicFormat.SubjectPublicKeyInfo),
    "ssh-keygen": (to.Encoding.PEM, to.PrivateFormat.OpenSSH, to.PublicFormat.OpenSSH),
}


def pair(folder: Path, form: str = "openssl", name: str = "key", password: bytes = b"") -> tuple[Path, Path]:
    """A private and a public key, as a program writes them."""
    encoding, private, public = FORMS[form]
    key = ed25519.Ed25519PrivateKey.generate()
    locked = to.BestAvailableEncryption(password) if password else to.NoEncryption()
    files = folder / name, folder / f"{name}.pub"
    files[0].write_bytes(key.private_bytes(encoding, private, locked))
    of_public = to.Encoding.OpenSSH if form == "ssh-keygen" else encoding
    files[1].write_bytes(key.public_key().public_bytes(of_public, public))
    return files


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "gpt2onnx.json").write_text("{}")
    return out


@pytest.mark.parametrize("form", FORMS)
def test_a_signature_is_known_by_its_key_alone(folder: Path, tmp_path: Path, form: str) -> None:
    private, public = pair(tmp_path, form)
    write(folder, [], True, "a match", {}, sign=signer(private))
    found = verify(folder, key=public)
    assert (found.passed, found.signed) == (True, True)
    assert verify(folder).signed is None
    other = verify(folder, key=pair(tmp_path, form, "other")[1])
    assert (other.passed, other.signed) == (False, False)
    assert "is NOT signed with this key" in other.verdict


def test_who_writes_a_new_certificate_with_right_hashes_is_found_out(folder: Path, tmp_path: Path) -> None:
    private, public = pair(tmp_path)
    write(folder, [], False, "a mismatch", {}, sign=signer(private))
    signature = read_json(folder / "gpt2onnx.json")["certificate"]["signature"]
    write(folder, [], True, "a match", {})
    assert verify(folder).passed  # hashes do not stop a forger
    assert not verify(folder, key=public).passed
    values = read_json(folder / "gpt2onnx.json")
    values["certificate"]["signature"] = signature
    (folder / "gpt2onnx.json").write_text(json.dumps(values))
    assert not verify(folder, key=public).passed


@pytest.mark.parametrize("signature", [None, 7, "", "no base64 …", "AAAA", ["AAAA"]])
def test_what_is_no_signature_is_none(tmp_path: Path, signature: object) -> None:
    assert is_signed("0" * 64, signature, pair(tmp_path)[1]) is False


def test_what_is_no_key_is_refused_by_name(tmp_path: Path) -> None:
    private, public = pair(tmp_path)
    locked, _ = pair(tmp_path, name="locked", password=b"secret")
    curve = tmp_path / "curve"
    another = ec.generate_private_key(ec.SECP256R1())
    curve.write_bytes(another.private_bytes(to.Encoding.PEM, to.PrivateFormat.PKCS8, to.NoEncryption()))
    for file in (public, locked, curve):
        with pytest.raises(CheckError, match=f"{file.name} holds no private Ed25519 key"):
            signer(file)
    with pytest.raises(CheckError, match="key holds no public Ed25519 key"):
        is_signed("", "", private)
    with pytest.raises(CheckError, match="absent cannot be read: No such file"):
        signer(tmp_path / "absent")


def test_a_check_that_writes_no_certificate_signs_none(save: Callable[..., Path], tmp_path: Path) -> None:
    source, (private, _) = save(), pair(tmp_path)
    convert(source, tmp_path / "ours")
    for out, options in ((tmp_path / "ours", {"certify": False}), (tmp_path / "ours" / "onnx" / "model.onnx", {})):
        with pytest.raises(CheckError, match="--sign signs a certificate, and none is written"):
            check(source, out, sign=private, **options)
    with pytest.raises(CheckError, match="certifies none: omit --certificate and --sign"):
        check(source, tmp_path / "ours", sign=private, files=False, certificate=tmp_path / "c.json")
    with pytest.raises(CheckError, match="certifies none: omit --sign"):
        check(source, tmp_path / "ours", sign=private, files=False)
