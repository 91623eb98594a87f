"""nginx with the shipped configuration before servers on this machine."""

import os
import re
import shutil
import socket
import subprocess
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Final

CONFIGURATION: Final = Path(__file__).parents[2] / "deploy" / "nginx" / "seqserve.conf"
NGINX: Final = shutil.which("nginx") or shutil.which("nginx", path="/usr/sbin")
TEMPORARY: Final = ("client_body", "proxy", "fastcgi", "uwsgi", "scgi")


@contextmanager
def proxied(ports: Sequence[int], folder: Path) -> Iterator[str]:
    """The URL of nginx with the shipped configuration, but for the ports."""
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    servers = "".join(f"server 127.0.0.1:{port} max_fails=0;\n" for port in ports)
    site, changes = re.subn(r"(    server 127\S+ max_fails=0;\n)+", servers, CONFIGURATION.read_text(encoding="utf-8"))
    assert changes == 1
    site = site.replace("listen 8000;", f"listen 127.0.0.1:{port};")
    paths = "".join(f"{name}_temp_path {folder}/{name};\n" for name in TEMPORARY)
    (folder / "nginx.conf").write_text(
        f"{'user root;' if os.getuid() == 0 else ''}\ndaemon off;\npid {folder}/pid;\nevents {{}}\n"
        f"http {{\naccess_log off;\n{paths}{site}}}\n",
        encoding="utf-8",
    )
    assert NGINX
    process = subprocess.Popen([NGINX, "-p", folder, "-c", folder / "nginx.conf", "-e", folder / "error.log"])
    try:
        while not accepts(port):
            assert process.poll() is None, (folder / "error.log").read_text()
        yield f"http://127.0.0.1:{port}"
    finally:
        process.terminate()
        process.wait()


def accepts(port: int) -> bool:
    """Return whether a connection to the port of this machine is accepted."""
    with socket.socket() as connection:
        return connection.connect_ex(("127.0.0.1", port)) == 0
