"""What KubeSAN has its storage daemon do: an NBD server on TCP from the start, a connection for each command, no job."""

import asyncio
import socket

from talk import PATIENCE, PAUSE, connect, main, quit, refused

IN_USE, TWICE = " is already in use", "Duplicate nodes with node-name"
GONE, NO_NODE = " is not found", "Failed to find node with node-name"


def unused_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


class KubeSan:
    def __init__(self, talk):
        self.talk, self.port, self.process = talk, unused_port(), None

    async def start(self):
        options = [
            "--chardev",
            f"socket,id=qmp-sock,path={self.talk.path('qmp.sock')},server=on,wait=off",
            "--monitor",
            "chardev=qmp-sock",
            "--nbd-server",
            f"addr.type=inet,addr.host=127.0.0.1,addr.port={self.port},max-connections=0",
        ]
        self.process = await asyncio.create_subprocess_exec(*self.talk.program, *options)
        await self.is_there()

    async def is_there(self):
        """The probe of a pod: the port takes connections."""
        until = asyncio.get_running_loop().time() + PATIENCE
        while True:
            try:
                _, writer = await asyncio.open_connection("127.0.0.1", self.port)
                writer.close()
                return
            except OSError:
                if asyncio.get_running_loop().time() > until:
                    raise
                await asyncio.sleep(PAUSE)

    async def cmd(self, command, arguments):
        qmp = await connect(self.talk.path("qmp.sock"))
        try:
            return await asyncio.wait_for(qmp.execute(command, arguments), PATIENCE)
        finally:
            await qmp.disconnect()

    async def refused(self, text, command, arguments):
        qmp = await connect(self.talk.path("qmp.sock"))
        told = await refused(qmp, command, arguments)
        self.talk.note(command, told, text in told)
        await qmp.disconnect()

    async def quit(self):
        await quit(await connect(self.talk.path("qmp.sock")))
        self.talk.note("ended", await asyncio.wait_for(self.process.wait(), PATIENCE))


async def script(talk):
    kube = KubeSan(talk)
    await kube.start()
    try:
        with open(talk.path("volume"), "wb") as volume:
            volume.truncate(8 << 20)
        # Its volumes are block devices; a file takes the same options.
        cache = {"direct": True}
        node = {"driver": "file", "node-name": "volume", "filename": talk.path("volume"), "cache": cache}
        node["aio"] = "native"
        export = {"type": "nbd", "id": "volume", "node-name": "volume", "writable": True}
        await kube.cmd("blockdev-add", node)
        await kube.refused(TWICE, "blockdev-add", node)
        await kube.cmd("block-export-add", export)
        await kube.refused(IN_USE, "block-export-add", export)
        uri = f"nbd://127.0.0.1:{kube.port}/volume"
        io = await asyncio.create_subprocess_exec(
            "qemu-io", "-f", "raw", "-c", "write -P 7 1M 64k", uri, stdout=asyncio.subprocess.DEVNULL
        )
        talk.note("written", await asyncio.wait_for(io.wait(), PATIENCE))
        talk.note(await kube.cmd("query-block-exports", {}))
        await kube.cmd("block-export-del", {"id": "volume", "mode": "hard"})
        while await kube.cmd("query-block-exports", {}) != []:
            await asyncio.sleep(PAUSE)
        await kube.refused(GONE, "block-export-del", {"id": "volume", "mode": "hard"})
        await kube.cmd("blockdev-del", {"node-name": "volume"})
        await kube.refused(NO_NODE, "blockdev-del", {"node-name": "volume"})
        await kube.refused(NO_NODE, "block-export-add", export)
        await kube.quit()
    finally:
        if kube.process.returncode is None:
            kube.process.kill()


main(script)
