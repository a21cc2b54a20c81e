"""What tests of signatures have in common: keys and certificates, made as `openssl` makes them."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID


def write_key(path: Path, password: bytes | None = None, curve: ec.EllipticCurve | None = None) -> tuple[Path, Path]:
    """Make a private key at `path` and its public one beside it; return both paths."""
    key = ec.generate_private_key(curve or ec.SECP256R1())
    return _written(path, key, password), _public(path.with_suffix(".pub"), key)


def write_certificates(folder: Path) -> tuple[Path, Path, Path]:
    """Make an authority and a certificate by it; return the paths of the key, of its certificate and of the authority's."""
    root, own = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    made = {"root": _certificate("an authority", root, "an authority", root), "own": _certificate("a maker", own, "an authority", root)}
    for name, certificate in made.items():
        (folder / f"{name}.crt").write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return _written(folder / "own.pem", own), folder / "own.crt", folder / "root.crt"


def _certificate(subject: str, key: ec.EllipticCurvePrivateKey, issuer: str, by: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name, maker = (x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)]) for text in (subject, issuer))
    start, ca = datetime.now(UTC) - timedelta(days=1), subject == issuer
    usage = {"content_commitment": False, "key_encipherment": False, "data_encipherment": False, "key_agreement": False}
    usage |= {"crl_sign": ca, "encipher_only": False, "decipher_only": False}
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(maker).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number()).not_valid_before(start).not_valid_after(start + timedelta(days=30))
    builder = builder.add_extension(x509.BasicConstraints(ca=ca, path_length=None), critical=True)
    builder = builder.add_extension(x509.KeyUsage(digital_signature=not ca, key_cert_sign=ca, **usage), critical=True)
    return builder.sign(by, hashes.SHA256())


def _written(path: Path, key: ec.EllipticCurvePrivateKey, password: bytes | None = None) -> Path:
    sealed = serialization.BestAvailableEncryption(password) if password else serialization.NoEncryption()
    path.write_bytes(key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, sealed))
    return path


def _public(path: Path, key: ec.EllipticCurvePrivateKey) -> Path:
    path.write_bytes(key.public_key().public_bytes(serialization.Encoding.PEM, serialization.PublicFormat.SubjectPublicKeyInfo))
    return path
