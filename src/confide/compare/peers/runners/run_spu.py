"""SPU on a dense network, one row at a time, a process for each party, links on loopback without TLS.

The input is the first party's, the model the second's. A call is timed at the first party: its row is shared, sent,
evaluated, and the output opened to it. Under CHEETAH each keeps its own input, as its users run it; under SEMI2K the
first party deals the correlations. Ring of 64 bits, 18 of them fraction. A last sigmoid is left to the client.
"""

import importlib.metadata
import json
import re
import resource
import socket
import struct
import subprocess
import sys
import time
from pathlib import Path

import exchange
import numpy as np

PARTIES = {"ABY3": 3, "CHEETAH": 2, "SEMI2K": 2}
FRACTION_BITS = 18
#: Calls whose bytes are counted, after the timed ones.
COUNTED = 3
_LINK = re.compile(r"total send bytes (\d+), recv bytes (\d+), send actions (\d+)")


def version():
    import spu  # noqa: F401 (that it can be imported)

    return importlib.metadata.version("spu")


def packed(share):
    """Return a share as bytes: lengths, then its parts."""
    parts = [bytes(share.meta), *map(bytes, share.share_chunks)]
    return struct.pack("<I", len(parts)) + b"".join(struct.pack("<Q", len(part)) + part for part in parts)


def unpacked(lib, body):
    """Return the share that `packed` wrote."""
    (count,), at, parts = struct.unpack_from("<I", body), 4, []
    for _ in range(count):
        (length,) = struct.unpack_from("<Q", body, at)
        parts.append(body[at + 8 : at + 8 + length])
        at += 8 + length
    share = lib.Share()
    share.meta, share.share_chunks = parts[0], parts[1:]
    return share


class Party:
    """One process of the computation: its link, its runtime, and how arrays become shares of all."""

    def __init__(self, protocol, rank, addresses):
        from spu import libspu

        self.lib, self.rank, self.world, self.protocol = libspu, rank, PARTIES[protocol], protocol
        desc = libspu.link.Desc()
        desc.recv_timeout_ms, desc.http_timeout_ms = 300_000, 120_000
        for number, address in enumerate(addresses):
            desc.add_party(f"party{number}", address)
        self.link = libspu.link.create_brpc(desc, rank)

    def start(self, profiled):
        """Take a new runtime; a profiled one logs what it sends."""
        from spu.api import Io, Runtime

        lib = self.lib
        config = lib.RuntimeConfig(lib.ProtocolKind.__members__[self.protocol], lib.FieldType.FM64, FRACTION_BITS)
        config.experimental_enable_colocated_optimization = self.protocol == "CHEETAH"
        config.enable_pphlo_profile = profiled
        if self.protocol == "SEMI2K":
            config.beaver_type = lib.RuntimeConfig.BeaverType.TrustedFirstParty
        self.io, self.runtime = Io(self.world, config), Runtime(self.link, config)

    def give(self, name, array, owner):
        """Share an array of one party among all; return the bytes that left it."""
        sent = 0
        if self.rank == owner:
            secret, holder = self.lib.Visibility.VIS_SECRET, owner if self.protocol == "CHEETAH" else -1
            shares = self.io.make_shares(np.asarray(array), secret, holder)
            for other in range(self.world):
                if other != owner:
                    body = packed(shares[other])
                    self.link.send_async(other, body)
                    sent += len(body)
            share = shares[owner]
        else:
            share = unpacked(self.lib, self.link.recv(owner))
        self.runtime.set_var(name, share)
        return sent

    def take(self, name):
        """Open a value to the first party; return it there, and the bytes that this party sent."""
        share = self.runtime.get_var(name)
        if self.rank:
            body = packed(share)
            self.link.send_async(0, body)
            return None, len(body)
        shares = [share, *(unpacked(self.lib, self.link.recv(other)) for other in range(1, self.world))]
        return self.io.reconstruct(shares), 0


def compiled(party, kinds, numbers, x):
    """Return the program and the name of its output."""
    import jax
    from spu.utils import frontend

    names, outputs = sorted(numbers), []

    def flat(*values):
        given, value = dict(zip(names, values[:-1], strict=True)), values[-1]
        for number, kind in enumerate(kinds):
            if kind == "Linear":
                value = value @ given[f"{number}.weight"] + given[f"{number}.bias"]
            else:
                value = value * value if kind == "Square" else jax.nn.relu(value)
        return value

    def named(found):
        outputs.extend(f"out{number}" for number in range(len(found)))
        return outputs

    values = [*(numbers[name] for name in names), x]
    secret = [party.lib.Visibility.VIS_SECRET] * len(values)
    return frontend.compile(frontend.Kind.JAX, flat, values, {}, [*names, "x"], secret, named)[0], outputs[0]


def run_party(folder, rank, addresses):
    """Compute all calls as one party; the first leaves what it found, and all what they sent."""
    task = json.loads((folder / "task.json").read_text())
    with np.load(folder / "arrays.npz", allow_pickle=False) as file:
        arrays = {name: file[name] for name in file.files}
    numbers = {}
    for number, (_, parts) in enumerate(exchange.dense(task, arrays)):
        if parts:
            weight, bias = (np.ascontiguousarray(part, np.float32) for part in (parts[0].T, parts[1]))
            numbers |= {f"{number}.weight": weight, f"{number}.bias": bias}
    x, begin = arrays["x"].astype(np.float32), time.perf_counter()
    party = Party(task["protocol"], rank, addresses)
    program, output = compiled(party, task["layers"], numbers, x[:1])
    found = {"seconds": [], "outputs": [], "sharing_bytes": 0}
    for profiled in (False, True):
        party.start(profiled)
        for name in sorted(numbers):
            party.give(name, numbers[name], 1)
        found.setdefault("setup_seconds", time.perf_counter() - begin)
        rows = x[: COUNTED + 1] if profiled else x[: task["calls"]]
        for row in rows:
            party.link.barrier()
            start, sent = time.perf_counter(), 0
            sent += party.give("x", row[None, :], 0)
            party.runtime.run(program)
            value, opened = party.take(output)
            found["sharing_bytes"] = sent + opened
            if not profiled:
                found["seconds"].append(time.perf_counter() - start)
                if value is not None:
                    found["outputs"].append(np.asarray(value, np.float64).ravel().tolist())
    party.link.barrier()
    found["peak_memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    (folder / f"party{rank}.json").write_text(json.dumps(found))
    party.link.stop_link()


def ports(count):
    """Return free ports of this machine."""
    sockets = [socket.create_server(("127.0.0.1", 0)) for _ in range(count)]
    found = [one.getsockname()[1] for one in sockets]
    for one in sockets:
        one.close()
    return found


def all_parties(folder, world):
    """Run a process for each party; return what each printed and found. Exits if one fails."""
    addresses = ",".join(f"127.0.0.1:{port}" for port in ports(world))
    logs, runs = [folder / f"party{rank}.log" for rank in range(world)], []
    for rank, log in enumerate(logs):
        with log.open("w") as file:
            command = [sys.executable, "-E", "-s", "-B", __file__, "--party", str(folder), str(rank), addresses]
            runs.append(subprocess.Popen(command, stdout=file, stderr=subprocess.STDOUT))
    while None in (codes := [run.poll() for run in runs]) and not any(codes):
        time.sleep(0.02)
    for run in runs:
        run.kill()
    texts = [log.read_text(errors="replace") for log in logs]
    if any(codes):
        raise SystemExit("\n".join(text[-400:] for code, text in zip(codes, texts, strict=True) if code))
    return texts, [json.loads((folder / f"party{rank}.json").read_text()) for rank in range(world)]


def infer(task, arrays):
    folder, world = Path(sys.argv[1]), PARTIES[task["protocol"]]
    task["calls"] = min(len(arrays["x"]), 100 if len(task["layers"]) < 2 else 30)
    (folder / "task.json").write_text(json.dumps(task))
    texts, parts = all_parties(folder, world)
    calls = [[int(one[0]) for one in _LINK.findall(text)][1:] for text in texts]  # the first makes what later ones use
    sent = sum(sum(one) / max(1, len(one)) for one in calls) + sum(part["sharing_bytes"] for part in parts)
    return {
        "of": "logits",
        "outputs": parts[0]["outputs"],
        "seconds": parts[0]["seconds"],
        "setup_seconds": parts[0]["setup_seconds"],
        "between_servers_bytes": sent,
        "peak_memory_bytes": sum(part["peak_memory_bytes"] for part in parts),
    }


if __name__ == "__main__":
    if sys.argv[1:2] == ["--party"]:
        exchange.end_with_parent()
        run_party(Path(sys.argv[2]), int(sys.argv[3]), sys.argv[4].split(","))
    else:
        exchange.run(version, inference=infer)
