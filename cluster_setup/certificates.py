"""Certificates for a cluster that talks TLS, and the Dask configuration file that uses them.

An authority of the cluster's own signs one certificate, which scheduler, workers and clients all show. Dask
checks that the other side's certificate is signed by that authority, and not its host name, so that whoever
holds the key is let in, from any address: copy the folder over a secure channel, and keep it to yourself.
"""

import os
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import yaml

from daskcurate.config import check_int


def make_certificates(folder: str | os.PathLike[str], days: int = 365) -> list[Path]:
    """Write certificates, and a Dask configuration that makes every connection TLS.

    Parameters
    ----------
    folder : path
        Where to write ``ca.pem``, ``cert.pem``, ``key.pem`` and ``tls.yaml``; made if missing.
    days : int
        How long the certificates are valid.

    Returns
    -------
    list of Path
        The files. The authority's key is not among them: it is thrown away, so that nothing else can be
        signed with it.

    Raises
    ------
    FileExistsError
        If one of the files is there already.
    ImportError
        If the package ``cryptography`` (extra ``tls``) is not installed.
    """
    days = check_int("days", days, 1)
    where = Path(folder).expanduser().absolute()
    files = [where / name for name in ("ca.pem", "cert.pem", "key.pem", "tls.yaml")]
    for file in files:
        if file.exists():
            raise FileExistsError(f"{file} is there already: give another folder, or remove it")
    contents = [*_signed(days), _dask_settings(*files[:3])]
    where.mkdir(mode=0o700, parents=True, exist_ok=True)
    for file, content in zip(files, contents, strict=True):
        handle = os.open(file, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(handle, "wb") as opened:
            opened.write(content)
    return files


def _signed(days: int) -> tuple[bytes, bytes, bytes]:
    """Return an authority's certificate, one signed by it, and the latter's key, as PEM."""
    try:
        from cryptography import x509
        from cryptography.hazmat.primitives import hashes, serialization
        from cryptography.hazmat.primitives.asymmetric import ec
    except ImportError as error:
        raise ImportError(
            "certificates are made with the package cryptography: pip install daskcurate[tls]"
        ) from error
    now = datetime.now(UTC)

    def certificate(name: str, issuer: str, key: Any, signing: Any, authority: bool) -> Any:
        made = (
            x509.CertificateBuilder()
            .subject_name(_name(x509, name))
            .issuer_name(_name(x509, issuer))
            .public_key(key.public_key())
            .serial_number(x509.random_serial_number())
            .not_valid_before(now - timedelta(minutes=5))  # clocks of machines differ
            .not_valid_after(now + timedelta(days=days))
            .add_extension(
                x509.BasicConstraints(ca=authority, path_length=0 if authority else None), critical=True
            )
        )
        return made.sign(signing, hashes.SHA256()).public_bytes(serialization.Encoding.PEM)

    authority_key, key = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
    return (
        certificate("daskcurate authority", "daskcurate authority", authority_key, authority_key, True),
        certificate("daskcurate", "daskcurate authority", key, authority_key, False),
        key.private_bytes(
            serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
        ),
    )


def _name(x509: Any, text: str) -> Any:
    return x509.Name([x509.NameAttribute(x509.NameOID.COMMON_NAME, text)])


def _dask_settings(ca: Path, cert: Path, key: Path) -> bytes:
    pair = {"cert": str(cert), "key": str(key)}
    tls = {"ca-file": str(ca), "scheduler": pair, "worker": dict(pair), "client": dict(pair)}
    comm = {"default-scheme": "tls", "require-encryption": True, "tls": tls}
    return yaml.safe_dump({"distributed": {"comm": comm}}, sort_keys=False).encode()
