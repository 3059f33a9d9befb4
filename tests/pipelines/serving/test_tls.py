"""TLS by files: wss and https, and robots that do not know the certificate stay away."""

from __future__ import annotations

import datetime
import ssl
import urllib.request
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

from pipelines.serving.frontend import Frontend
from pipelines.serving.run import Listening, free_port, in_background
from pipelines.serving.service import PolicyService, ServiceConfig
from preprocessing.store.episode_store import EpisodeStore
from preprocessing.store.images import decode_image
from tests.support.policy_clients import OpenpiRobot
from tests.support.policy_server import untrained


def certificate(folder: Path) -> tuple[str, str]:
    """The files of a certificate for localhost that signs itself, and of its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "localhost")])
    now = datetime.datetime.now(datetime.UTC)
    made = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(1)
        .not_valid_before(now - datetime.timedelta(days=1))
        .not_valid_after(now + datetime.timedelta(days=1))
        .add_extension(x509.SubjectAlternativeName([x509.DNSName("localhost")]), critical=False)
        .sign(key, hashes.SHA256())
    )
    files = folder / "certificate.pem", folder / "key.pem"
    files[0].write_bytes(made.public_bytes(serialization.Encoding.PEM))
    plain = serialization.NoEncryption()
    files[1].write_bytes(
        key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.TraditionalOpenSSL, plain)
    )
    return str(files[0]), str(files[1])


def test_a_server_with_a_certificate_speaks_tls(
    opened: EpisodeStore, frames: list[bytes], text: str, tmp_path: Path
) -> None:
    chain, key = certificate(tmp_path)
    listening = Listening(port=free_port(), certificate=chain, key=key)
    assert listening.url() == f"https://127.0.0.1:{listening.port}"
    trusting = ssl.create_default_context(cafile=chain)
    with in_background(Frontend(service=PolicyService(untrained(opened), ServiceConfig())), listening):
        with OpenpiRobot(f"wss://localhost:{listening.port}", ssl=trusting) as robot:
            assert robot.infer({"image": decode_image(frames[0]), "prompt": text})["frames_seen"] == 1
        url = f"https://localhost:{listening.port}/healthz"
        with urllib.request.urlopen(url, context=trusting) as answer:
            assert answer.read() == b"OK\n"
        with pytest.raises(ssl.SSLCertVerificationError):
            OpenpiRobot(f"wss://localhost:{listening.port}")


def test_certificate_and_key_go_together() -> None:
    with pytest.raises(ValueError, match="--tls-certificate and --tls-key go together"):
        Listening(certificate="chain.pem")


def test_files_that_are_no_certificate_and_key_are_named(tmp_path: Path) -> None:
    chain, _ = certificate(tmp_path)
    with pytest.raises(ValueError, match=r"--tls-key none\.pem: there is no such file"):
        Listening(certificate=chain, key="none.pem")
    (tmp_path / "other").mkdir()
    for other in (chain, certificate(tmp_path / "other")[1]):
        with pytest.raises(ValueError, match=f"--tls-key {other} are no certificate and its private key, both PEM"):
            Listening(certificate=chain, key=other)
