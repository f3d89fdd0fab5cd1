#!/usr/bin/env python3
"""Stands for a cluster's DNS and for a cloud, on port 53 and 443 of the loopback:

    image-cloud.py NAME CERTIFICATE KEY

DNS knows this one name. The cloud says of every connection what came of it, and answers every request with an account that
has no volumes.
"""
import socket
import ssl
import struct
import sys
import threading

name, certificate, key = sys.argv[1:]
LOOPBACK = "127.0.0.1"
A = 1
NO_SUCH_NAME = 3


def say(text):
    print(text, flush=True)


def answer_names(server):
    while True:
        query, asker = server.recvfrom(512)
        labels, at = [], 12
        while query[at]:
            labels.append(query[at + 1 : at + 1 + query[at]].decode())
            at += 1 + query[at]
        question = query[12 : at + 5]
        (kind,) = struct.unpack(">H", query[at + 1 : at + 3])
        known = ".".join(labels) == name
        # For the name that was asked, which begins at byte 12, good for a minute
        answers = [struct.pack(">HHHIH", 0xC00C, A, 1, 60, 4) + socket.inet_aton(LOOPBACK)] if known and kind == A else []
        flags = 0x8180 if known else 0x8180 | NO_SUCH_NAME
        head = query[:2] + struct.pack(">HHHHH", flags, 1, len(answers), 0, 0)
        server.sendto(head + question + b"".join(answers), asker)


def answer_requests(server, tls):
    body = b'{"blocks":[],"meta":{"total":0,"links":{"next":"","prev":""}}}'
    head = f"HTTP/1.1 200 OK\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\nConnection: close\r\n\r\n"
    while True:
        connection, _ = server.accept()
        connection.settimeout(5)
        try:
            with tls.wrap_socket(connection, server_side=True) as secured:
                request = b""
                while b"\r\n\r\n" not in request:
                    got = secured.recv(4096)
                    if not got:
                        raise OSError("it ended before its request did")
                    request += got
                say("asked: " + request.split(b"\r\n")[0].decode())
                secured.sendall(head.encode() + body)
        # TLS' errors are among them.
        except OSError as error:
            say(f"broken off: {error}")


names = socket.socket(socket.AF_INET, socket.SOCK_DGRAM)
names.bind((LOOPBACK, 53))
requests = socket.create_server((LOOPBACK, 443))
tls = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
tls.load_cert_chain(certificate, key)
threading.Thread(target=answer_names, args=(names,), daemon=True).start()
say("serving")
answer_requests(requests, tls)
