"""What Proxmox VE has its storage daemon do: `qemu-server`, its modules QSD, VolumeChain and BlockJob.

It starts the daemon in the background, connects anew for each command, and asks for jobs until they are ready or gone.
"""

import asyncio
import os

from talk import PATIENCE, PAUSE, Watch, connect, main, quit, refused

DRIVE = "drive-tpmstate0"


class Proxmox:
    def __init__(self, talk):
        self.talk, self.watch = talk, Watch(talk)
        self.socket, self.pidfile = talk.path("8006.qsd"), talk.path("8006.pid")

    async def start(self):
        options = [
            "--daemonize",
            "--chardev",
            f"socket,id=qmp,path={self.socket},server=on,wait=off",
            "--monitor",
            "chardev=qmp,mode=control",
            "--pidfile",
            self.pidfile,
        ]
        process = await asyncio.create_subprocess_exec(*self.talk.program, *options, *Watch.options(self.talk))
        code = await asyncio.wait_for(process.wait(), PATIENCE)
        self.talk.note("started", code, os.path.exists(self.pidfile))
        await self.watch.open()

    async def cmd(self, command, **arguments):
        """One command over a connection of its own."""
        qmp = await connect(self.socket)
        try:
            named = {name.replace("_", "-"): value for name, value in arguments.items()}
            return await asyncio.wait_for(qmp.execute(command, named), PATIENCE)
        finally:
            await qmp.disconnect()

    async def refused(self, command, **arguments):
        qmp = await connect(self.socket)
        named = {name.replace("_", "-"): value for name, value in arguments.items()}
        self.talk.note("refused", command, named, await refused(qmp, command, named))
        await qmp.disconnect()

    def node(self, name, **more):
        common = {
            "cache": {"direct": False, "no-flush": False},
            "detect-zeroes": "unmap",
            "discard": "unmap",
        }
        file = {
            "driver": "file",
            "node-name": f"e-{name}",
            "filename": self.talk.path(f"{name}.qcow2"),
            **common,
        }
        return {"driver": "qcow2", "node-name": f"f-{name}", "file": file, **common, **more}

    async def attach(self, name):
        await self.cmd("object-add", qom_type="throttle-group", id=f"throttle-{DRIVE}", limits={})
        throttle = {
            "driver": "throttle",
            "node-name": DRIVE,
            "throttle-group": f"throttle-{DRIVE}",
            "file": self.node(name),
        }
        await self.cmd("blockdev-add", **throttle)

    async def snapshot(self, below, name, writes):
        """A new image over the present one, whose name in its header is relative."""
        self.talk.image(f"{name}.qcow2", "8M", f"{below}.qcow2", writes)
        await self.cmd("blockdev-add", **self.node(name, backing=None))
        await self.cmd("blockdev-snapshot", node=f"f-{below}", overlay=f"f-{name}")

    async def job(self, job_id):
        jobs = await self.cmd("query-block-jobs")
        return next((job for job in jobs if job["device"] == job_id), None)

    async def finish(self, job_id, completion):
        """Asks for the job until it is gone, and ends it once it is ready."""
        told_to_end = False
        while (job := await self.job(job_id)) is not None:
            if job["status"] == "concluded":
                self.talk.note("concluded", job_id, job.get("error"), job["io-status"])
                await self.cmd("job-dismiss", id=job_id)
            elif job["ready"] and not told_to_end:
                await self.cmd(completion, **({"id": job_id} if completion == "job-complete" else {"device": job_id}))
                told_to_end = True
            await asyncio.sleep(PAUSE)

    async def cancel(self, job_id):
        await self.cmd("block-job-cancel", device=job_id)
        while await self.job(job_id) is not None:
            await asyncio.sleep(PAUSE)

    async def commit(self, top, base, completion=None, **more):
        job_id = f"commit-{DRIVE}"
        await self.cmd(
            "block-commit", job_id=job_id, device=DRIVE, base_node=f"f-{base}", top_node=f"f-{top}", **more
        )
        await self.finish(job_id, completion)
        await self.watch.until("JOB_STATUS_CHANGE", id=job_id, status="null")

    async def stream(self, overlay, base):
        job_id = f"stream-{DRIVE}"
        await self.cmd(
            "block-stream",
            job_id=job_id,
            device=f"f-{overlay}",
            base_node=f"f-{base}",
            backing_file=f"{base}.qcow2",
        )
        await self.finish(job_id, None)
        await self.watch.until("JOB_STATUS_CHANGE", id=job_id, status="null")

    async def beside_a_job(self):
        """What is refused while a stream goes on, which is cancelled then."""
        job_id = f"stream-{DRIVE}"
        stream = {"job_id": job_id, "device": "f-v3", "base_node": "f-v0", "speed": 65536}
        await self.cmd("block-stream", **stream)
        await self.watch.until("JOB_STATUS_CHANGE", id=job_id, status="running")
        await self.refused("block-stream", **stream)
        await self.refused("block-commit", job_id="commit", device=DRIVE, base_node="f-v0", top_node="f-v2")
        await self.refused("blockdev-del", node_name="f-v2")
        await self.refused("job-complete", id=job_id)
        await self.refused("job-dismiss", id=job_id)
        await self.cancel(job_id)
        # How far it came is a matter of time.
        while True:
            event = await asyncio.wait_for(self.watch.listener.get(), PATIENCE)
            status = event["data"].get("status")
            if status not in ("paused", "running"):
                self.talk.note(event["event"], status)
            if status == "null":
                return

    async def nodes(self):
        nodes = await self.cmd("query-named-block-nodes", flat=True)
        for node in sorted(nodes, key=lambda node: node["node-name"]):
            self.talk.note(*[node.get(key) for key in ("node-name", "drv", "ro", "file", "backing_file")])

    async def quit(self):
        pid = int(open(self.pidfile).read())
        await self.watch.close()
        await quit(await connect(self.socket))
        until = asyncio.get_running_loop().time() + PATIENCE
        while os.path.exists(f"/proc/{pid}") and asyncio.get_running_loop().time() < until:
            await asyncio.sleep(PAUSE)
        self.talk.note("ended", not os.path.exists(f"/proc/{pid}"), os.path.exists(self.pidfile))

    def stop(self):
        if os.path.exists(self.pidfile):
            os.kill(int(open(self.pidfile).read()), 9)


async def script(talk):
    pve = Proxmox(talk)
    try:
        await pve.start()
        talk.image("v0.qcow2", "8M", None, ["write -P 1 0 2M", "write -z 2M 1M"])
        await pve.attach("v0")
        await pve.snapshot("v0", "v1", ["write -P 2 1M 2M"])
        await pve.snapshot("v1", "v2", ["write -P 3 3M 2M", "write -z 0 64k"])
        await pve.snapshot("v2", "v3", ["write -P 4 5M 1M"])
        await pve.beside_a_job()
        # An image in the middle is merged into a base that is read-only between two jobs.
        read_only = pve.node("v0", read_only=True)
        read_only["read-only"] = read_only.pop("read_only")
        await pve.cmd("blockdev-reopen", options=[read_only])
        await pve.cmd("blockdev-reopen", options=[read_only | {"read-only": False}])
        await pve.commit("v1", "v0")
        await pve.cmd("blockdev-reopen", options=[read_only])
        await pve.cmd("blockdev-del", node_name="f-v1")
        await pve.nodes()
        await pve.stream("v3", "v0")
        await pve.cmd("blockdev-del", node_name="f-v2")
        # The active image: once without its being put in place of anything, then with.
        await pve.commit("v3", "v0", "block-job-cancel")
        await pve.commit("v3", "v0", "job-complete", auto_dismiss=False)
        await pve.cmd("blockdev-del", node_name="f-v3")
        await pve.refused("job-dismiss", id=f"commit-{DRIVE}")
        await pve.refused("block-job-cancel", device=f"commit-{DRIVE}")
        await pve.nodes()
        await pve.quit()
    finally:
        pve.stop()


main(script)
