"""What csi-qsd has its storage daemon do: one connection for all, and JSON in single quotes."""

import asyncio
import os

from qemu.qmp import QMPClient
from talk import PATIENCE, Talk, Watch, connect, main, quit, refused


class SingleQuoted(QMPClient):
    """A client that sends what QEMU reads and JSON does not know."""

    def _do_send(self, msg):
        text = bytes(msg)
        assert b"'" not in text and b"\\" not in text
        self._writer.write(text.replace(b'"', b"'"))


class Csi:
    def __init__(self, talk):
        self.talk, self.watch, self.process, self.qmp = talk, Watch(talk), None, None

    async def start(self):
        options = [
            "--pidfile",
            self.talk.path("qsd.pid"),
            "--chardev",
            f"socket,server=on,path={self.talk.path('qmp.sock')},id=chardev0,wait=off",
            "--monitor",
            "chardev=chardev0",
        ]
        self.process = await asyncio.create_subprocess_exec(
            *self.talk.program, *options, *Watch.options(self.talk)
        )
        self.qmp = await connect(self.talk.path("qmp.sock"), SingleQuoted)
        await self.watch.open()

    async def cmd(self, command, arguments):
        return await asyncio.wait_for(self.qmp.execute(command, arguments), PATIENCE)

    async def refused(self, command, arguments):
        self.talk.note("refused", command, arguments, await refused(self.qmp, command, arguments))

    async def volume(self, name, size, writes):
        self.talk.image(f"{name}.qcow2", size, None, writes)
        file = {"driver": "file", "filename": self.talk.path(f"{name}.qcow2")}
        await self.cmd("blockdev-add", {"driver": "qcow2", "file": file, "node-name": f"node-{name}"})

    async def snapshot(self, image, name, writes):
        self.talk.image(f"{name}.qcow2", "8M", self.talk.path(f"{image}.qcow2"), writes)
        file = {"driver": "file", "filename": self.talk.path(f"{name}.qcow2")}
        node = {"driver": "qcow2", "file": file, "backing": None, "node-name": f"node-{name}"}
        await self.cmd("blockdev-add", node)
        await self.cmd("blockdev-snapshot", {"node": f"node-{image}", "overlay": f"node-{name}"})

    async def stream(self, base, overlay):
        stream = {"device": f"node-{overlay}", "job-id": "job0", "base-node": f"node-{base}"}
        await self.cmd("block-stream", stream)
        await self.watch.until("BLOCK_JOB_COMPLETED")
        await self.watch.until("JOB_STATUS_CHANGE", status="null")
        await self.refused("job-dismiss", {"id": "job0"})

    async def commit(self, node, top, base):
        """Images are named by their files."""
        commit = {
            "device": f"node-{node}",
            "job-id": "job0",
            "top": self.talk.path(f"{top}.qcow2"),
            "base": self.talk.path(f"{base}.qcow2"),
        }
        await self.cmd("block-commit", commit)
        if node == top:
            await self.watch.until("BLOCK_JOB_READY")
            await self.cmd("job-complete", {"id": "job0"})
        await self.watch.until("BLOCK_JOB_COMPLETED")
        await self.watch.until("JOB_STATUS_CHANGE", status="null")

    async def dismissed(self):
        """A job that stays until it is dismissed."""
        stream = {"device": "node-s2", "job-id": "job1", "auto-dismiss": False}
        await self.cmd("block-stream", stream)
        await self.watch.until("BLOCK_JOB_COMPLETED")
        await self.watch.until("JOB_STATUS_CHANGE", status="concluded")
        await self.cmd("job-dismiss", {"id": "job1"})
        await self.watch.until("JOB_STATUS_CHANGE", status="null")

    async def delete_beside_a_job(self, name):
        """A volume is not deleted while a job goes on there: its users look for that text."""
        slow = {"device": "node-s2", "job-id": "job0", "base-node": "node-v0", "speed": 65536}
        await self.cmd("block-stream", slow)
        await self.watch.until("JOB_STATUS_CHANGE", status="running")
        for node in (name, "s2"):
            await self.refused("blockdev-del", {"node-name": f"node-{node}"})
        resize = {"node-name": f"node-{name}", "size": 1 << 24}
        await self.refused("block_resize", resize)
        await self.cmd("job-cancel", {"id": "job0"})
        while (event := await asyncio.wait_for(self.watch.listener.get(), PATIENCE))["data"].get("status") != "null":
            pass

    async def nodes(self):
        for node in sorted(await self.cmd("query-named-block-nodes", {}), key=lambda node: node["node-name"]):
            if not node["node-name"].startswith("#"):
                image = node["image"]
                backing = [image.get(key) for key in ("filename", "virtual-size", "backing-filename")]
                self.talk.note(node["node-name"], node["drv"], node["ro"], node["backing_file_depth"], backing)

    async def quit(self):
        await self.watch.close()
        await quit(self.qmp)
        code = await asyncio.wait_for(self.process.wait(), PATIENCE)
        self.talk.note("ended", code, os.path.exists(self.talk.path("qsd.pid")))


async def script(talk: Talk):
    csi = Csi(talk)
    await csi.start()
    try:
        address = {"type": "unix", "data": {"path": talk.path("nbd.sock")}}
        await csi.cmd("nbd-server-start", {"addr": address})
        await csi.volume("v0", "8M", ["write -P 1 0 3M"])
        await csi.refused("blockdev-add", {"driver": "null-co", "node-name": "node-v0"})
        await csi.snapshot("v0", "s1", ["write -P 2 1M 2M"])
        await csi.snapshot("s1", "s2", ["write -P 3 4M 2M", "write -z 0 128k"])
        add = {"device": "node-s2", "name": "disk", "writable": True, "description": "disk exporter"}
        await csi.cmd("nbd-server-add", add)
        await csi.delete_beside_a_job("s1")
        await csi.nodes()
        await csi.stream("v0", "s2")
        await csi.cmd("blockdev-del", {"node-name": "node-s1"})
        await csi.refused("blockdev-del", {"node-name": "node-s1"})
        await csi.snapshot("s2", "s3", ["write -P 5 6M 1M"])
        await csi.commit("s3", "s2", "v0")
        await csi.nodes()
        await csi.commit("s3", "s3", "v0")
        await csi.nodes()
        await csi.cmd("nbd-server-stop", {})
        await csi.cmd("blockdev-del", {"node-name": "node-s3"})
        await csi.refused("block-stream", {"device": "node-s3", "job-id": "job0"})
        file = {"driver": "file", "filename": talk.path("s2.qcow2")}
        await csi.cmd("blockdev-del", {"node-name": "node-s2"})
        node = {"driver": "qcow2", "file": file, "backing": "node-v0", "node-name": "node-s2"}
        await csi.cmd("blockdev-add", node)
        await csi.dismissed()
        await csi.nodes()
        await csi.quit()
    finally:
        if csi.process.returncode is None:
            csi.process.kill()


main(script)
