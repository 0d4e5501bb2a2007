"""``memfold up``: a platform in the foreground."""

from __future__ import annotations

import shlex
import sys
from typing import Annotated, Any

import typer
from rich.console import Console

from memfold.cli.options import options
from memfold.cli.output import console, print_json, say
from memfold.cli.signals import exit_on_termination
from memfold.local.platform import Member, Platform
from memfold.local.settings import DEFAULT_LISTEN, PlatformSettings


def up(
    context: typer.Context,
    *,
    backbone: Annotated[
        str,
        typer.Option(
            envvar="MEMFOLD_BACKBONE", metavar="MODEL", help="Directory or hub name; else the embedded model."
        ),
    ] = "",
    adapter: Annotated[
        str, typer.Option(envvar="MEMFOLD_ADAPTER", metavar="ADAPTER", help="The δ-mem adapter of that backbone.")
    ] = "",
    listen: Annotated[
        str, typer.Option(metavar="HOST:PORT", help="The gateway's address; port 0 takes a free one.")
    ] = DEFAULT_LISTEN,
    device: Annotated[str, typer.Option(envvar="MEMFOLD_DEVICE", help="auto, cpu, cuda, cuda:1.")] = "auto",
    threads: Annotated[
        int,
        typer.Option(envvar="MEMFOLD_THREADS", min=0, help="Threads of each writer and reader; 0: their share."),
    ] = 0,
    readers: Annotated[int, typer.Option(min=1, help="How many readers answer.")] = 1,
    writers: Annotated[int, typer.Option(min=1, help="How many writers fold.")] = 1,
    redis_url: Annotated[
        str, typer.Option(envvar="MEMFOLD_REDIS_URL", metavar="URL", help="A Redis of yours; else a private one.")
    ] = "",
    grace: Annotated[float, typer.Option(min=0, help="Seconds that each process may take to stop.")] = 5.0,
    as_json: Annotated[
        bool, typer.Option("--json", help="Print address, API key and process ids as one JSON object.")
    ] = False,
) -> None:
    """Leave the platform running in the foreground; ctrl-C stops it.

    Starts Redis, writers, readers and gateway as processes of their own, makes an API key by itself, and keeps everything
    in the data directory. A process that dies is named with its last lines, and the rest is stopped.
    """
    _check_listen(listen)
    exit_on_termination()
    out = console()
    settings = PlatformSettings(
        data_dir=options(context).data.root,
        listen=listen,
        backbone=backbone,
        adapter=adapter,
        device=device,
        threads=threads,
        readers=readers,
        writers=writers,
        redis_url=redis_url,
        grace_s=grace,
    )
    if not as_json:
        say(out, f"starting the platform on {settings.data_dir}")
    platform = Platform.start(settings, on_ready=lambda member: None if as_json else announce(out, member))
    try:
        if as_json:
            print_json(_facts(platform))
        else:
            _welcome(out, platform)
        platform.wait()
    except KeyboardInterrupt:
        if not as_json:
            say(out, "\nstopping …")
        raise
    finally:
        platform.stop()


def _facts(platform: Platform) -> dict[str, Any]:
    return {
        "target": platform.target,
        "api_key": platform.api_key,
        "data_dir": str(platform.settings.data_dir),
        "pids": {member.name: member.pid for member in platform.members},
    }


def announce(out: Console, member: Member) -> None:
    """Say that a process serves."""
    say(out, f"  {member.name:<9} pid {member.pid:<8} {member.address() or ''}")


def _welcome(out: Console, platform: Platform) -> None:
    say(out, f"ready: {platform.target}   API key: {platform.api_key}")
    command = shlex.join([sys.argv[0], "--data-dir", str(platform.settings.data_dir), "chat"])
    say(out, f"in another terminal: {command}\nctrl-C stops everything")


def _check_listen(listen: str) -> None:
    host, _, port = listen.rpartition(":")
    if not host or not port.isascii() or not port.isdigit() or int(port) > 65535:
        raise typer.BadParameter(f"{listen!r} is not of the form HOST:PORT", param_hint="--listen")
