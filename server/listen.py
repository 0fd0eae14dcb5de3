"""Where a server listens."""

from __future__ import annotations

import getpass
import socket
import ssl
import warnings
from dataclasses import dataclass
from functools import cached_property

from .listener import Listener

_BACKLOG = 2048


class _Password:
    """Asks for that of a key, on the terminal or else of the input, where there is one.

    asked: whether there was. EOFError where nobody answers.
    """

    def __init__(self, key: str) -> None:
        self.asked = False
        self._prompt = f"Password of the key {key}: "

    def __call__(self) -> str:
        self.asked = True
        with warnings.catch_warnings():  # input that is no terminal shows nothing anyway
            warnings.simplefilter("ignore", getpass.GetPassWarning)
            return getpass.getpass(self._prompt)


@dataclass(frozen=True)
class Listen:
    """Where to listen, and the TLS files if there are any. port 0: any free one."""

    host: str = "127.0.0.1"
    port: int = 8000
    certificate: str | None = None
    key: str | None = None
    client_ca: str | None = None

    @cached_property
    def tls(self) -> ssl.SSLContext | None:
        """What the TLS files say; None without them. They are read once, for a key may be behind a
        password. ValueError naming the option of one that cannot be used.
        """
        if self.certificate is None:
            return None
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        named = f"--ssl-certfile {self.certificate}"
        named += f" with --ssl-keyfile {self.key}" if self.key else " without --ssl-keyfile"
        what = "no certificate with its private key in PEM form"
        password = _Password(self.key or self.certificate)
        try:
            context.load_cert_chain(self.certificate, self.key, password)
            password.asked = False
            if self.client_ca is not None:
                named, what = f"--ssl-ca-certs {self.client_ca}", "no certificates in PEM form"
                context.load_verify_locations(self.client_ca)
                context.verify_mode = ssl.CERT_REQUIRED
        except EOFError:
            ask = "there is neither a terminal nor any input to ask for it"
            raise ValueError(f"{named}: the key is behind a password, and {ask}") from None
        except OSError as error:  # an SSLError is one
            if password.asked:
                raise ValueError(f"{named}: the password does not open the key") from error
            reason = error if isinstance(error, ssl.SSLError) else error.strerror
            raise ValueError(f"{named}: {what} ({reason})") from error
        return context

    def open(self) -> Listener:
        """A listening socket. OSError when the address cannot be had."""
        family = socket.AF_INET6 if ":" in self.host else socket.AF_INET
        # With the protocol named, asyncio turns off Nagle's algorithm, which holds a token back
        # until the client has acknowledged the one before: up to 40 ms.
        sock = Listener(family, socket.SOCK_STREAM, socket.IPPROTO_TCP)
        try:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            sock.bind((self.host, self.port))
            sock.listen(_BACKLOG)
        except OSError:
            sock.close()
            raise
        return sock

    def url(self, sock: socket.socket) -> str:
        """Where clients find it."""
        host, port = sock.getsockname()[:2]
        shown = f"[{host}]" if ":" in host else host
        return f"http{'s' if self.certificate else ''}://{shown}:{port}"
