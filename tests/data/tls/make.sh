#!/bin/sh
# Makes the certificates of tests/test_connection_url.py anew. They guard nothing: the keys are public, the names are this machine's own.
set -eu
cd "$(dirname "$0")"
key() { openssl genpkey -algorithm EC -pkeyopt ec_paramgen_curve:P-256; }
key > ca.key
openssl req -x509 -new -key ca.key -subj "/CN=Authority of the tests" -days 36500 -out ca.pem
# NAME SUBJECT-ALTERNATIVE-NAMES: key and certificate in one file
signed() {
    key > "$1.key"
    openssl req -new -key "$1.key" -subj "/CN=$1" -addext "subjectAltName=$2" -out "$1.csr"
    openssl x509 -req -in "$1.csr" -CA ca.pem -CAkey ca.key -copy_extensions copy -days 36500 -out "$1.crt"
    cat "$1.key" "$1.crt" > "$1.pem"
}
signed here DNS:localhost,IP:127.0.0.1
signed elsewhere DNS:elsewhere.example
rm -f ./*.key ./*.csr ./*.crt
