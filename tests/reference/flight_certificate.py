"""Makes the certificate that tests of encrypted connections use: tests/golden/tls. Needs cryptography.

usage: flight_certificate.py FOLDER
"""

import datetime
import ipaddress
import pathlib
import sys

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

folder = pathlib.Path(sys.argv[1])
begin, end = datetime.datetime(2020, 1, 1), datetime.datetime(2120, 1, 1)


def name(text):
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, text)])


def start(subject, key):
    builder = x509.CertificateBuilder().subject_name(name(subject)).issuer_name(name("Sluice test authority"))
    builder = builder.public_key(key.public_key()).serial_number(x509.random_serial_number())
    return builder.not_valid_before(begin).not_valid_after(end)


def write(file, certificate):
    (folder / file).write_bytes(certificate.public_bytes(serialization.Encoding.PEM))


# The authority's key is forgotten at the end.
authority, server = ec.generate_private_key(ec.SECP256R1()), ec.generate_private_key(ec.SECP256R1())
builder = start("Sluice test authority", authority)
builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
write("authority.pem", builder.sign(authority, hashes.SHA256()))
names = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]
builder = start("localhost", server)
builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
builder = builder.add_extension(x509.SubjectAlternativeName(names), critical=False)
builder = builder.add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
write("server.pem", builder.sign(authority, hashes.SHA256()))
pem = serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
(folder / "server.key.pem").write_bytes(server.private_bytes(*pem))
