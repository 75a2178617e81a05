"""Is there a key, does the server answer: asked before a tracker's package is imported. Keys themselves are never read here."""
from __future__ import annotations

import os
import re
from pathlib import Path
from urllib.parse import urlparse


def wandb_server() -> str:
    return os.environ.get("WANDB_BASE_URL") or "https://api.wandb.ai"


def comet_server() -> str:
    return os.environ.get("COMET_URL_OVERRIDE") or "https://www.comet.com/clientlib/"


def reachable(url: str, seconds: float) -> bool:
    """True if the server accepts a connection, or if a proxy decides that.

    Asked first because the packages themselves retry for half a minute (Comet) or without end (W&B).
    """
    import socket
    from urllib.request import getproxies

    parts = urlparse(url)
    if parts.scheme in getproxies() or "all" in getproxies():
        return True
    try:
        with socket.create_connection((parts.hostname or "", parts.port or (80 if parts.scheme == "http" else 443)), seconds):
            return True
    except OSError:
        return False


def wandb_key() -> bool:
    """True if W&B will find a key: in the environment or in the netrc file."""
    if os.environ.get("WANDB_API_KEY"):
        return True
    import netrc

    host = urlparse(wandb_server()).hostname or ""
    for name in (os.environ.get("NETRC"), "~/.netrc", "~/_netrc"):
        path = Path(name).expanduser() if name else None
        try:
            if path and path.is_file() and netrc.netrc(str(path)).authenticators(host):
                return True
        except (netrc.NetrcParseError, OSError):
            continue
    return False


def comet_key() -> bool:
    """True if Comet will find a key: in the environment or in its configuration file."""
    if os.environ.get("COMET_API_KEY"):
        return True
    files = (Path(os.environ.get("COMET_CONFIG") or "~/.comet.config").expanduser(), Path(".comet.config"))
    pattern = re.compile(r"^\s*api_key\s*=\s*\S", re.MULTILINE)
    return any(path.is_file() and pattern.search(path.read_text(errors="replace")) for path in files)
