"""How the scripts beside this file talk to a storage daemon: over the package `qemu.qmp`, as its users do.

A script is run as `python3 SCRIPT FOLDER PROGRAM [ARGUMENT...]` and prints what the daemon told it, a line each. Nothing in a
script depends on which daemon it is; what is a matter of time, or of the folder's name, is left out of the lines.
"""

import asyncio
import json
import os
import subprocess
import sys

from qemu.qmp import EventListener, ExecuteError, QMPClient, QMPError

# Longer than anything here takes on a loaded machine.
PATIENCE = 60.0
# Between two looks of a script that asks again and again, as its user does every second.
PAUSE = 0.02


class Talk:
    """Lines of what was told, and a folder whose name is none of their matter."""

    def __init__(self):
        self.folder, self.program = sys.argv[1], sys.argv[2:]

    def path(self, name):
        return os.path.join(self.folder, name)

    def note(self, *words):
        text = " ".join(w if isinstance(w, str) else json.dumps(w, sort_keys=True) for w in words)
        print(text.replace(self.folder, "FOLDER"), flush=True)

    def image(self, name, size, backing=None, writes=()):
        """An image with data of its own, made by QEMU's tools. What it is over may be open in a daemon already."""
        path = self.path(name)
        run("qemu-img", "create", "-q", "-f", "qcow2", path, size)
        for write in writes:
            run("qemu-io", "-f", "qcow2", "-c", write, path)
        if backing:
            run("qemu-img", "rebase", "-u", "-f", "qcow2", "-F", "qcow2", "-b", backing, path)


def run(*command):
    subprocess.run(command, check=True, stdout=subprocess.DEVNULL, timeout=PATIENCE)


async def connect(path, client=QMPClient):
    """A client past its negotiation. The socket may be about to appear."""
    until = asyncio.get_running_loop().time() + PATIENCE
    while True:
        qmp = client("script")
        try:
            await asyncio.wait_for(qmp.connect(path), PATIENCE)
            return qmp
        except Exception:
            if asyncio.get_running_loop().time() > until:
                raise
            await asyncio.sleep(PAUSE)


class Watch:
    """A second monitor, on which events are heard while the script asks on the first as its user does."""

    def __init__(self, talk):
        self.talk, self.qmp, self.listener = talk, None, EventListener()
        self.last = None

    @staticmethod
    def options(talk):
        return [
            "--chardev",
            f"socket,id=watch,path={talk.path('watch.sock')},server=on,wait=off",
            "--monitor",
            "chardev=watch",
        ]

    async def open(self):
        self.qmp = await connect(self.talk.path("watch.sock"))
        self.qmp.register_listener(self.listener)

    async def until(self, name, **data):
        """Notes what is told up to such an event."""
        while True:
            event = await asyncio.wait_for(self.listener.get(), PATIENCE)
            line = (event["event"], event["data"])
            # Whether a drained section of the daemon's own finds a job at work is a matter of time, and so is how often.
            is_pause = event["data"].get("status") in ("paused", "standby")
            if not is_pause and line != self.last:
                self.talk.note(*line)
                self.last = line
            if event["event"] == name and data.items() <= event["data"].items():
                return event["data"]

    async def close(self):
        await self.qmp.disconnect()


async def refused(qmp, command, arguments):
    """The text with which a command is refused."""
    try:
        await qmp.execute(command, arguments)
    except ExecuteError as error:
        return f"{error.error_class}: {error}"
    raise SystemExit(f"{command} {arguments} was not refused")


async def quit(qmp):
    """Has the daemon end, which may close the connection before it answers or before the client does."""
    for step in (qmp.execute("quit"), qmp.disconnect()):
        try:
            await asyncio.wait_for(step, PATIENCE)
        except (EOFError, QMPError):
            pass


def main(script):
    asyncio.run(script(Talk()))
