"""The certificate that REST is served with, looked at before anything is started."""

from __future__ import annotations

import ssl
from typing import NamedTuple

from common.settings import Settings


class Certificate(NamedTuple):
    """PEM files that belong together; ``key`` None: it is in the certificate's file."""

    file: str
    key: str | None


def certificate_of(settings: Settings) -> Certificate | None:
    """What the settings name; None: REST is served by HTTP.

    Raises
    ------
    ValueError
        In one line, if they cannot be used.
    """
    if not settings.http_certificate:
        if settings.http_key:
            raise ValueError("setting http_key: an http_certificate is needed beside it")
        return None
    found = Certificate(settings.http_certificate, settings.http_key or None)
    for name, path in (("http_certificate", found.file), ("http_key", found.key or found.file)):
        try:
            with open(path, "rb"):
                pass
        except OSError as error:
            raise ValueError(f"setting {name}: {path}: {error.strerror}") from error
    encrypted = False

    def no_password() -> bytes:  # else the library asks on the terminal
        nonlocal encrypted
        encrypted = True
        return b"none"

    try:
        ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER).load_cert_chain(found.file, found.key, no_password)
    except (ssl.SSLError, OSError, ValueError) as error:
        raise ValueError(_why(found, error, encrypted)) from error
    return found


def trusting(certificate: Certificate) -> ssl.SSLContext:
    """What a client on this machine accepts from the server: this certificate alone, whatever its name is."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    context.load_verify_locations(certificate.file)
    return context


def _why(certificate: Certificate, error: Exception, encrypted: bool) -> str:
    key = certificate.key or certificate.file
    if encrypted:
        return f"setting http_key: {key} is encrypted; REST cannot ask for its password"
    reason = getattr(error, "reason", None) or ""
    if reason == "KEY_VALUES_MISMATCH":
        return f"setting http_key: {key} is not the key of {certificate.file}"
    said = f" ({reason.replace('_', ' ').lower()})" if reason else ""
    if certificate.key is None:
        return f"setting http_certificate: {key} is no certificate with its key in PEM{said}"
    return f"setting http_certificate: {certificate.file} with {key}: no certificate and its key in PEM{said}"
