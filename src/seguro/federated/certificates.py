"""Certificates and keys of a federation: one authority, certificates for TLS, EC keys that name a node.

Needs the package `cryptography` (extra `federated`), imported where it is used.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import datetime, timedelta
from typing import TYPE_CHECKING, Literal

from seguro.core.errors import ConfigError, ExtraMissing

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric import ec

Use = Literal["client", "server"]
BACKDATED = timedelta(minutes=10)
"""Certificates are valid from a little earlier, for clocks that are behind."""
CRL_DAYS = 3650


@dataclass(frozen=True)
class Issued:
    """A certificate with its key, as PEM."""

    certificate: bytes
    key: bytes
    serial: int
    until: datetime


class Authority:
    """The certificate authority of one federation; whoever holds its key can add a site."""

    def __init__(self, certificate: x509.Certificate, key: ec.EllipticCurvePrivateKey) -> None:
        self.certificate = certificate
        self.key = key

    @classmethod
    def new(cls, name: str, *, now: datetime, days: int) -> Authority:
        """Return a new authority whose certificate is its own."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec

        key = ec.generate_private_key(ec.SECP384R1())
        subject = _name(f"{name} authority")
        usage = _usage(sign=False, authority=True)
        certificate = (
            _builder(subject, subject, key.public_key(), now, days)
            .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
            .add_extension(usage, critical=True)
            .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
            .sign(key, hashes.SHA384())
        )
        return cls(certificate, key)

    @classmethod
    def load(cls, certificate: bytes, key: bytes) -> Authority:
        """Return the authority of these PEM texts."""
        from cryptography import x509
        from cryptography.hazmat.primitives import serialization

        loaded = serialization.load_pem_private_key(key, None)
        return cls(x509.load_pem_x509_certificate(certificate), loaded)  # type: ignore[arg-type]

    @property
    def pem(self) -> bytes:
        """The certificate, which everybody gets."""
        return _pem(self.certificate)

    @property
    def secret(self) -> bytes:
        """The key, which stays where the certificates are made."""
        return _secret(self.key)

    def issue(self, name: str, use: Use, hosts: Iterable[str] = (), *, now: datetime, days: int) -> Issued:
        """Return a new certificate with its key.

        Args:
            name: its common name.
            use: client: shows who a site is. server: answers at `hosts`. Neither can be used as the other.
            hosts: names and addresses that it is valid for.
            now: from when, about.
            days: for how long; never longer than the authority itself.
        """
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes
        from cryptography.hazmat.primitives.asymmetric import ec
        from cryptography.x509.oid import ExtendedKeyUsageOID

        key = ec.generate_private_key(ec.SECP256R1())
        allowed = ExtendedKeyUsageOID.CLIENT_AUTH if use == "client" else ExtendedKeyUsageOID.SERVER_AUTH
        of_ca = x509.AuthorityKeyIdentifier.from_issuer_public_key(self.key.public_key())
        builder = (
            _builder(_name(name), self.certificate.subject, key.public_key(), now, days, self.certificate)
            .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
            .add_extension(_usage(sign=True, authority=False), critical=True)
            .add_extension(x509.ExtendedKeyUsage([allowed]), critical=False)
            .add_extension(of_ca, critical=False)
        )
        if names := [_host(h) for h in hosts]:
            builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
        certificate = builder.sign(self.key, hashes.SHA384())
        return Issued(
            _pem(certificate), _secret(key), certificate.serial_number, certificate.not_valid_after_utc
        )

    def revoked(self, serials: Iterable[int], *, now: datetime) -> bytes:
        """Return the list of certificates that no longer count, as PEM."""
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes

        builder = (
            x509.CertificateRevocationListBuilder()
            .issuer_name(self.certificate.subject)
            .last_update(now - BACKDATED)
            .next_update(now + timedelta(days=CRL_DAYS))
        )
        for serial in serials:
            one = x509.RevokedCertificateBuilder().serial_number(serial).revocation_date(now)
            builder = builder.add_revoked_certificate(one.build())
        return _pem(builder.sign(self.key, hashes.SHA384()))


def node_key() -> tuple[bytes, bytes]:
    """Return a new P-384 key in OpenSSH form, private and public: how Flower knows a SuperNode."""
    needed()
    from cryptography.hazmat.primitives import serialization
    from cryptography.hazmat.primitives.asymmetric import ec

    key = ec.generate_private_key(ec.SECP384R1())
    private = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.OpenSSH, serialization.NoEncryption()
    )
    public = key.public_key().public_bytes(serialization.Encoding.OpenSSH, serialization.PublicFormat.OpenSSH)
    return private, public


def valid_until(certificate: bytes, authority: bytes, *, now: datetime) -> datetime:
    """Return until when a certificate is valid.

    Raises:
        ConfigError: not yet or no longer valid, or of another authority.
    """
    needed()
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature

    try:
        found, by = x509.load_pem_x509_certificate(certificate), x509.load_pem_x509_certificate(authority)
    except ValueError as error:
        raise ConfigError(f"not a certificate ({error})") from error
    try:
        found.verify_directly_issued_by(by)
    except (InvalidSignature, ValueError, TypeError) as error:
        raise ConfigError("was not issued by this federation's authority") from error
    start, end = found.not_valid_before_utc, found.not_valid_after_utc
    if now > end:
        raise ConfigError(f"expired on {end:%Y-%m-%d %H:%M} UTC")
    if now < start:
        raise ConfigError(f"is not valid before {start:%Y-%m-%d %H:%M} UTC; is this machine's clock right?")
    return end


def needed() -> None:
    """Raise ExtraMissing where the package `cryptography` is not installed."""
    try:
        import cryptography  # noqa: F401
    except ImportError as error:
        raise ExtraMissing("cryptography", "federated", "making certificates") from error


def _name(common: str) -> x509.Name:
    from cryptography import x509
    from cryptography.x509.oid import NameOID

    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common)])


def _builder(
    subject: x509.Name,
    issuer: x509.Name,
    key: ec.EllipticCurvePublicKey,
    now: datetime,
    days: int,
    within: x509.Certificate | None = None,
) -> x509.CertificateBuilder:
    from cryptography import x509

    end = now + timedelta(days=days)
    if within is not None:
        end = min(end, within.not_valid_after_utc)
    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(key)
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - BACKDATED)
        .not_valid_after(end)
    )


def _usage(*, sign: bool, authority: bool) -> x509.KeyUsage:
    from cryptography import x509

    return x509.KeyUsage(
        digital_signature=sign,
        key_cert_sign=authority,
        crl_sign=authority,
        content_commitment=False,
        key_encipherment=False,
        data_encipherment=False,
        key_agreement=False,
        encipher_only=False,
        decipher_only=False,
    )


def _host(host: str) -> x509.GeneralName:
    from cryptography import x509

    try:
        return x509.IPAddress(ipaddress.ip_address(host))
    except ValueError:
        return x509.DNSName(host)


def _pem(thing: x509.Certificate | x509.CertificateRevocationList) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return thing.public_bytes(serialization.Encoding.PEM)


def _secret(key: ec.EllipticCurvePrivateKey) -> bytes:
    from cryptography.hazmat.primitives import serialization

    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
