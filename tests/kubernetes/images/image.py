#!/usr/bin/env python3
"""Makes a container's image of one layer, as an archive that containerd and Docker import, without a registry or a daemon:

    image.py [--busybox PROGRAM] ARCHIVE NAME[,NAME]... ENTRYPOINT [FILE=PLACE]...
"""
import argparse
import hashlib
import io
import json
import os
import subprocess
import tarfile

parser = argparse.ArgumentParser(description=__doc__)
parser.add_argument("--busybox", help="put it and all its commands into /bin")
parser.add_argument("archive")
parser.add_argument("names")
parser.add_argument("entrypoint")
parser.add_argument("files", nargs="*")
wanted = parser.parse_args()

folders = ["bin", "dev", "etc", "lib", "lib64", "mnt", "proc", "root", "sys", "tmp", "usr", "usr/bin"]
users = {"etc/passwd": "root:x:0:0:root:/root:/bin/sh\n", "etc/group": "root:x:0:\n"}


def add(layer, name, kind=tarfile.REGTYPE, mode=0o755, content=b"", link=""):
    entry = tarfile.TarInfo(name)
    entry.type, entry.mode, entry.size, entry.linkname = kind, mode, len(content), link
    layer.addfile(entry, io.BytesIO(content))


def read(path):
    with open(path, "rb") as file:
        return file.read()


files = {place.lstrip("/"): source for source, place in (file.split("=", 1) for file in wanted.files)}
packed = io.BytesIO()
with tarfile.open(fileobj=packed, mode="w") as layer:
    for folder in folders:
        add(layer, folder, tarfile.DIRTYPE, 0o1777 if folder == "tmp" else 0o755)
    for name, text in users.items():
        add(layer, name, mode=0o644, content=text.encode())
    if wanted.busybox:
        add(layer, "bin/busybox", content=read(wanted.busybox))
        commands = subprocess.check_output([wanted.busybox, "--list"], text=True).split()
        for command in sorted({f"bin/{command}" for command in commands} - {"bin/busybox"} - files.keys()):
            add(layer, command, tarfile.SYMTYPE, 0o777, link="busybox")
    for place, source in files.items():
        add(layer, place, mode=os.stat(source).st_mode & 0o777, content=read(source))
packed = packed.getvalue()

config = {
    "architecture": "amd64",
    "os": "linux",
    "config": {"Entrypoint": [wanted.entrypoint], "Env": ["PATH=/bin:/usr/bin:/sbin:/usr/sbin"]},
    "rootfs": {"type": "layers", "diff_ids": ["sha256:" + hashlib.sha256(packed).hexdigest()]},
}
config = json.dumps(config).encode()
config_name = hashlib.sha256(config).hexdigest() + ".json"
manifest = [{"Config": config_name, "RepoTags": wanted.names.split(","), "Layers": ["layer.tar"]}]
with tarfile.open(wanted.archive, "w") as archive:
    for name, content in ((config_name, config), ("layer.tar", packed), ("manifest.json", json.dumps(manifest).encode())):
        add(archive, name, mode=0o644, content=content)
