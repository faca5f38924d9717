"""The small certificate authority of one cluster: who may speak on the channel.

EC P-256. An identity is a URI name: `segmap:controller` or `segmap:agent:NAME`. Files in one directory: `ca.pem`,
`ca.key`, and `ROLE.pem`, `ROLE.key` (controller) or `agent-NAME.pem`, `agent-NAME.key`. Keys have mode 0600. Nothing is
overwritten but by `rotate`, which replaces key and certificate by atomic renames, the key first.
"""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Final

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from transport import revocation
from transport.connection import TransportError
from transport.whole_files import replace_whole, write_new

ROLES: Final = ("controller", "agent")
NAME: Final = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,62}")
CA_DAYS: Final = 3650
CERTIFICATE_DAYS: Final = 825
CLOCK_SKEW: Final = timedelta(minutes=5)
KEY_MODE: Final = 0o600
CERTIFICATE_MODE: Final = 0o644
DIRECTORY_MODE: Final = 0o700

Now = Callable[[], datetime]


class PkiError(TransportError):
    """A file is there already, is missing, or is not what it should be; the text says which and what to do."""


@dataclass(frozen=True, slots=True)
class Files:
    """What a process needs to identify itself."""

    ca: Path
    certificate: Path
    key: Path


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """What a certificate says. `identity` is empty for an authority."""

    identity: str
    not_before: datetime
    not_after: datetime
    serial: int

    def days_left(self, now: datetime) -> float:
        """Negative once it has expired."""
        return (self.not_after - now) / timedelta(days=1)


def utc_now() -> datetime:
    """The time as certificates have it."""
    return datetime.now(UTC)


def identity(name: str, role: str) -> str:
    """The URI name of a role; raises PkiError for a bad name or role."""
    if role not in ROLES:
        raise PkiError(f"role {role!r}: one of {', '.join(ROLES)}")
    if role == "controller":
        return "segmap:controller"
    if not NAME.fullmatch(name):
        raise PkiError(f"agent name {name!r}: 1 to 63 letters, digits, '.', '_' and '-', a letter or digit first")
    return f"segmap:agent:{name}"


def files(directory: Path, name: str, role: str) -> Files:
    """Where the files of an identity are, whether or not they exist."""
    identity(name, role)
    stem = role if role == "controller" else f"{role}-{name}"
    return Files(directory / "ca.pem", directory / f"{stem}.pem", directory / f"{stem}.key")


def init(directory: Path, *, cluster: str = "segmap", now: Now = utc_now, days: int = CA_DAYS) -> Path:
    """Make the authority: `ca.pem` and `ca.key`. Raises PkiError if there is one. Returns the certificate's path."""
    directory.mkdir(mode=DIRECTORY_MODE, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, f"{cluster} authority"[:64])])
    builder = _builder(name, name, key.public_key(), now(), days)
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_key_usage(authority=True), critical=True)
    builder = builder.add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
    certificate = builder.sign(key, hashes.SHA256())
    _write_new(directory / "ca.key", _key_bytes(key), KEY_MODE)
    _write_new(directory / "ca.pem", certificate.public_bytes(serialization.Encoding.PEM), CERTIFICATE_MODE)
    return directory / "ca.pem"


def issue(directory: Path, name: str, role: str, *, now: Now = utc_now, days: int = CERTIFICATE_DAYS) -> Files:
    """A new key and certificate. Raises PkiError if either file exists (see `rotate`) or there is no authority."""
    paths = files(directory, name, role)
    for path in (paths.key, paths.certificate):
        if path.exists():
            raise PkiError(f"{path}: exists already; `rotate` replaces it")
    key, certificate = _make(directory, name, role, now(), days)
    _write_new(paths.key, key, KEY_MODE)
    _write_new(paths.certificate, certificate, CERTIFICATE_MODE)
    _record(directory, paths, now())
    return paths


def rotate(directory: Path, name: str, role: str, *, now: Now = utc_now, days: int = CERTIFICATE_DAYS) -> Files:
    """Replace key and certificate of an identity that exists. The old certificate stays valid until it expires."""
    paths = files(directory, name, role)
    for path in (paths.key, paths.certificate):
        if not path.exists():
            raise PkiError(f"{path}: is not there; `issue` makes it")
    key, certificate = _make(directory, name, role, now(), days)
    replace_whole(paths.key, key, KEY_MODE)
    replace_whole(paths.certificate, certificate, CERTIFICATE_MODE)
    _record(directory, paths, now())
    return paths


def revoke(
    directory: Path, name: str, role: str, *, old: bool = False, now: Now = utc_now
) -> tuple[revocation.Issued, ...]:
    """Revoke every valid certificate of an identity: no new connection, and open ones are closed. `old`: all but the
    one in its file.

    Returns those that were not revoked before. Raises PkiError if none was issued here.
    """
    kept = inspect(files(directory, name, role).certificate).serial if old else 0
    try:
        return revocation.revoke(directory, identity(name, role), now().timestamp(), kept)
    except revocation.RevocationError as error:
        raise PkiError(str(error)) from error


def show(directory: Path) -> dict[Path, tuple[CertificateInfo, bool]]:
    """Every certificate in the directory, and whether it is revoked. Raises PkiError."""
    try:
        revoked = revocation.serials(directory / revocation.REVOKED)
    except revocation.RevocationError as error:
        raise PkiError(str(error)) from error
    found = {path: inspect(path) for path in sorted(directory.glob("*.pem"))}
    if not found:
        raise PkiError(f"{directory}: no certificate here; `init` makes an authority")
    return {path: (info, info.serial in revoked) for path, info in found.items()}


def _record(directory: Path, paths: Files, now: datetime) -> None:
    info = inspect(paths.certificate)
    issued = revocation.Issued(info.serial, info.identity, info.not_after.timestamp())
    try:
        revocation.record(directory, issued, now.timestamp())
    except revocation.RevocationError as error:
        raise PkiError(str(error)) from error


def inspect(path: Path) -> CertificateInfo:
    """What a certificate file says. Raises PkiError."""
    certificate = _load_certificate(path)
    names: list[str] = []
    try:
        extension = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName)
        names = extension.value.get_values_for_type(x509.UniformResourceIdentifier)
    except x509.ExtensionNotFound:
        pass
    return CertificateInfo(
        names[0] if names else "",
        certificate.not_valid_before_utc,
        certificate.not_valid_after_utc,
        certificate.serial_number,
    )


# --- making ----------------------------------------------------------------------------------------------------------


def _make(directory: Path, name: str, role: str, now: datetime, days: int) -> tuple[bytes, bytes]:
    """(key, certificate) as PEM."""
    uri = identity(name, role)
    authority = _load_certificate(directory / "ca.pem")
    authority_key = _load_key(directory / "ca.key")
    if authority.public_key() != authority_key.public_key():
        raise PkiError(f"{directory}: ca.pem and ca.key do not belong together")
    days_left = (authority.not_valid_after_utc - now) // timedelta(days=1)
    if days_left <= 0:
        raise PkiError(f"{directory / 'ca.pem'}: the authority has expired; `init` another one in an empty directory")
    key = ec.generate_private_key(ec.SECP256R1())
    subject = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name if role == "agent" else role)])
    builder = _builder(subject, authority.subject, key.public_key(), now, min(days, days_left))
    builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
    builder = builder.add_extension(_key_usage(authority=False), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName([x509.UniformResourceIdentifier(uri)]), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage(_purposes(role)), critical=False)
    builder = builder.add_extension(
        x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.public_key()), critical=False
    )
    certificate = builder.sign(authority_key, hashes.SHA256())
    return _key_bytes(key), certificate.public_bytes(serialization.Encoding.PEM)


def _purposes(role: str) -> list[x509.ObjectIdentifier]:
    """An agent only connects; the controller is connected to."""
    return [ExtendedKeyUsageOID.SERVER_AUTH if role == "controller" else ExtendedKeyUsageOID.CLIENT_AUTH]


def _builder(
    subject: x509.Name, issuer: x509.Name, key: ec.EllipticCurvePublicKey, now: datetime, days: int
) -> x509.CertificateBuilder:
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - CLOCK_SKEW)
        .not_valid_after(now + timedelta(days=days))
    )


def _key_usage(*, authority: bool) -> x509.KeyUsage:
    return x509.KeyUsage(
        digital_signature=not authority,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


# --- files -----------------------------------------------------------------------------------------------------------


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except OSError as error:
        raise PkiError(f"{path}: {error.strerror}; `init` makes an authority, `issue` a certificate") from error
    except ValueError as error:
        raise PkiError(f"{path}: no PEM certificate: {error}") from error


def _load_key(path: Path) -> ec.EllipticCurvePrivateKey:
    try:
        key = serialization.load_pem_private_key(path.read_bytes(), password=None)
    except OSError as error:
        raise PkiError(f"{path}: {error.strerror}; `init` makes it") from error
    except (ValueError, TypeError) as error:
        raise PkiError(f"{path}: no PEM private key: {error}") from error
    if not isinstance(key, ec.EllipticCurvePrivateKey):
        raise PkiError(f"{path}: no elliptic-curve key")
    return key


def _write_new(path: Path, data: bytes, mode: int) -> None:
    try:
        write_new(path, data, mode)
    except FileExistsError as error:
        raise PkiError(f"{path}: exists already, and is kept") from error
