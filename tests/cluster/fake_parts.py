"""Stand-ins for the parts of a head and for what a worker runs: enough to watch processes come and go.

Run as a script it is a driver: it starts a head, tells where it is, and waits.
"""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sys
import time

SLEEP = [sys.executable, "-c", "import time; time.sleep(300)"]


def run_worker(start):
    """Print facts about itself, then do as the file of orders says, if the test wrote one for this worker."""
    facts = {
        "pid": os.getpid(),
        "pgid": os.getpgid(0),
        "ppid": os.getppid(),
        "mark": os.environ["SHOAL_WORKER_ID"],
        "descriptors": sorted(int(fd) for fd in os.listdir("/proc/self/fd") if os.path.exists(f"/proc/self/fd/{fd}")),
        "arena_fd": start.arena_fd,
        "token": start.tokens.current.hex(),
    }
    print(json.dumps(facts))
    # As the socket of a real worker.
    with open(os.path.join(start.session_dir, f"w-{facts['mark'][:16]}.sock"), "w"):
        pass
    orders = os.path.join(start.session_dir, "orders-" + start.worker_id.hex())
    if os.path.exists(orders):
        with open(orders) as file:
            exec(file.read(), {"__name__": "orders"})
        return 0
    while True:
        time.sleep(60)


#: Orders: children that stay in the group, leave it, leave it and forget where they come from, or are forked without exec.
LEAVE_CHILDREN = f"""
import os, subprocess, time
subprocess.Popen({SLEEP!r})
subprocess.Popen({SLEEP!r}, start_new_session=True)
subprocess.Popen({SLEEP!r}, env={{}})
if os.fork() == 0:
    os.setsid()
    if os.fork() == 0:
        time.sleep(300)
    os._exit(0)
print("started", flush=True)
time.sleep(300)
"""


class FakeParts:
    """Obeys JSON lines on agent.sock and tells everybody there what happens."""

    endpoint = ""

    def __init__(self, context):
        self.context = context
        self.writers = []

    async def serve(self):
        self.context.launcher.on_exit = self.exited
        self.context.logs.emit = self.emit
        self.server = await asyncio.start_unix_server(self.client, self.context.session.agent_address.removeprefix("unix:"))

    def say(self, what, **facts):
        for writer in self.writers:
            writer.write(json.dumps({"what": what, **facts}).encode() + b"\n")

    def exited(self, worker_id, pid, code, number):
        self.say("exit", worker=worker_id.hex(), pid=pid, code=code, signal=number, tail=self.context.launcher.tail(worker_id))

    def emit(self, lines):
        self.say("lines", name=lines.name, lines=lines.lines, error=lines.is_error)
        return True

    async def client(self, reader, writer):
        self.writers.append(writer)
        launcher, logs = self.context.launcher, self.context.logs
        while line := await reader.readline():
            order = json.loads(line)
            workers = [bytes.fromhex(worker) for worker in order.get("workers", ())]
            match order["do"]:
                case "start":
                    for worker in workers:
                        launcher.start(worker)
                case "kill":
                    for worker in workers:
                        launcher.kill(worker)
                case "assign":
                    for worker in workers:
                        logs.assign(worker, b"job1")
                        logs.rename(worker, order.get("name", ""))
                case "statistics":
                    found = launcher.statistics()
                    pids = {worker.hex(): launcher.pid_of(worker) for worker in workers}
                    self.say("statistics", pids=pids, **{name: getattr(found, name) for name in found.__slots__})

    async def close(self):
        self.server.close()


async def compose(context):
    parts = FakeParts(context)
    await parts.serve()
    return parts


async def compose_wrongly(context):
    raise RuntimeError("the parts do not fit")


async def compose_and_die(context):
    print("last words", file=sys.stderr, flush=True)
    os.kill(os.getpid(), signal.SIGKILL)


def options(temp_dir, **changes):
    from shoal._core.process.options import HeadOptions

    changes = {"composition": "fake_parts:compose", "worker_entry": "fake_parts:run_worker", **changes}
    return HeadOptions(num_cpus=2, object_store_bytes=80 << 20, temp_dir=str(temp_dir), **changes)


def main(temp_dir, fork):
    from shoal._core.process.start import start_head

    head = start_head(options(temp_dir))
    if fork and os.fork() == 0:  # it holds the lifeline, too
        time.sleep(5)
        os._exit(0)
    print(json.dumps({"head": head.pid, "template": head.ready.template_pid, "session_dir": head.ready.session_dir}), flush=True)
    while True:
        signal.pause()


if __name__ == "__main__":
    main(sys.argv[1], sys.argv[2:] == ["fork"])
