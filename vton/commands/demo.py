"""`vton demo`: the try-on page, served on this machine."""

from __future__ import annotations

import errno
import ipaddress
import socket
import sys
import threading
from argparse import Namespace

from vton.errors import UserError, one_line
from vton.photos.extras import package

LIMIT = 64  # connections at a time


def run(args: Namespace) -> None:
    uvicorn = package("uvicorn", "vton demo", extra="demo")
    package("starlette", "vton demo", extra="demo")
    from vton.demo.server import Demo

    listening = listen(args.host, args.port)
    port = listening.getsockname()[1]
    address = in_url(args.host)
    demo = Demo(lambda: load(args), hosts=(address, *map(in_url, args.allow_host)))
    config = uvicorn.Config(
        demo.app,
        log_level="warning",
        access_log=False,
        server_header=False,
        limit_concurrency=LIMIT,
        timeout_keep_alive=5,
        timeout_graceful_shutdown=2,
        lifespan="off",
        ws="none",
    )
    server = uvicorn.Server(config)
    shown = "localhost" if args.host in ("127.0.0.1", "::1") else address
    print(f"Open http://{shown}:{port}/ (Ctrl-C stops it).", flush=True)
    if not ipaddress.ip_address(listening.getsockname()[0]).is_loopback:
        print(
            "note: other machines can reach the page; there is no password and no encryption.",
            file=sys.stderr,
        )

    def watch() -> None:
        demo.loading.finished.wait()
        if demo.loading.error is None:
            print("The networks are loaded.", flush=True)
        else:
            server.should_exit = True

    threading.Thread(target=watch, daemon=True).start()
    try:
        server.run(sockets=[listening])
    except KeyboardInterrupt:  # the usual end; uvicorn has closed everything
        pass
    finally:
        demo.worker.stop()
    if demo.loading.error is not None:
        raise demo.loading.error


def in_url(host: str) -> str:
    """A name or an address as it stands in URLs: those of IPv6 in brackets."""
    return f"[{host}]" if host.count(":") > 1 and not host.startswith("[") else host


def listen(host: str, port: int) -> socket.socket:
    """A socket bound to the address. Raises UserError."""
    if not host:  # to the system all addresses, which nobody asks for by saying nothing
        raise UserError("--host is empty. Leave it out, or take 0.0.0.0 for all addresses.")
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    listening = socket.socket(family, socket.SOCK_STREAM)
    listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    try:
        listening.bind((host, port))
        listening.listen(LIMIT)  # connections that come before the server runs wait for it
    except (OSError, OverflowError, UnicodeError) as error:
        listening.close()
        raise UserError(not_listening(host, port, error)) from None
    return listening


def not_listening(host: str, port: int, error: Exception) -> str:
    """Why an address cannot be listened on, and what to do."""
    if isinstance(error, OverflowError):
        return f"--port {port}: ports go from 0, which is any free one, to 65535."
    unknown = isinstance(error, socket.gaierror | UnicodeError)  # the second for what is no name
    if unknown or error.errno == errno.EADDRNOTAVAIL:
        return (
            f"--host {host} is no address of this machine ({one_line(error)}). Leave it out, or "
            "take 0.0.0.0 for all of them."
        )
    return f"cannot listen on {host}:{port}: {error.strerror}. Choose another --port, or 0 for any."


def load(args: Namespace):
    """The run and the networks, imported only now: the page answers before that."""
    from vton.commands.choice import chosen_stage
    from vton.commands.prepare import chosen_networks
    from vton.training.trainer import quiet_libraries
    from vton.tryon import TryOn

    quiet_libraries()
    args.overrides = [f"runs={args.runs}"]
    networks = chosen_networks(args)
    return TryOn(stage=chosen_stage(args), networks=networks, device=args.device)
