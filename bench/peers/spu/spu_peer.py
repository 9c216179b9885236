"""SPU 0.9.5 on one network or one training step, a process for each party. Runs in its own environment;
`confide peers install spu --folder bench/peers` makes it.

Reads a JSON object from standard input and writes one.

    protocol    ABY3 (three parties, honest majority), CHEETAH (two, no dealer), SEMI2K (two; its first party deals the
                correlations and so could read everything: INSECURE, for comparison alone)
    task        infer (`layers` as in bench/mpc_nets.py), logistic_step or mlp_step
    arrays      an .npz: for infer `<number>.weight`, `<number>.bias` and `x` (rows, *shape); for a step its operands
    addresses   for each party the host:port of every party as that one reaches it: a relay may lie between
    seconds     after which all is given up
    warm, repeats, counted (calls whose messages are counted, after them, slower for it), rows (of x in one call)

The input is the first party's, the model the second's. A call is timed at the first party: an input is shared, sent,
evaluated and the output opened to the first party. A step is timed without that: shares stay where they are. In
CHEETAH input and model are known to their owners, as its users run it. Ring of 64 bits, 18 of them fraction.
"""

import ctypes
import json
import pickle
import re
import signal
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

PARTIES = {"ABY3": 3, "CHEETAH": 2, "SEMI2K": 2}
FRACTION_BITS = 18
RATE = 0.125  # of a step of gradient descent, as in bench/mpc.py


# --- what is computed -------------------------------------------------------------------------------------------------


def to_channels_last(layers, arrays):
    """Return the arrays in the order that SPU computes in: HWIO kernels, matrices for inputs of (h, w, c)."""
    found, image = {}, None
    for layer in layers:
        if layer["kind"] == "residual":
            found |= to_channels_last(layer["body"], arrays) | to_channels_last(layer["shortcut"], arrays)
        elif "number" in layer:
            weight, bias = arrays[f"{layer['number']}.weight"], arrays[f"{layer['number']}.bias"]
            if layer["kind"] == "conv":
                weight, image = weight.transpose(2, 3, 1, 0), weight.shape[0]
            else:
                if image and weight.shape[1] > image:  # channel by channel becomes pixel by pixel
                    weight = weight.reshape(len(weight), image, -1).transpose(0, 2, 1).reshape(len(weight), -1)
                weight, image = weight.T, None
            found |= {f"{layer['number']}.weight": np.ascontiguousarray(weight), f"{layer['number']}.bias": bias}
    return found


def network(layers):
    """Return a function of the numbers and the input."""
    import jax
    from jax import lax

    def chain(layers, numbers, x):
        for layer in layers:
            kind = layer["kind"]
            if "number" in layer:
                weight, bias = numbers[f"{layer['number']}.weight"], numbers[f"{layer['number']}.bias"]
            if kind == "conv":
                pads, steps = [(layer["padding"],) * 2] * 2, (layer["stride"],) * 2
                x = lax.conv_general_dilated(x, weight, steps, pads, dimension_numbers=("NHWC", "HWIO", "NHWC")) + bias
            elif kind == "linear":
                x = x.reshape(len(x), -1) @ weight + bias
            elif kind == "relu":
                x = jax.nn.relu(x)
            elif kind == "sigmoid":
                x = jax.nn.sigmoid(x)
            elif kind == "maxpool":
                window = (1, layer["size"], layer["size"], 1)
                x = lax.reduce_window(x, -np.inf, lax.max, window, window, "VALID")
            elif kind == "mean":
                x = x.mean((1, 2))
            elif kind == "residual":
                x = chain(layer["body"], numbers, x) + chain(layer["shortcut"], numbers, x)
            else:
                raise SystemExit(f"Expected a kind of layer that is written here, got {kind}")
        return x

    return lambda numbers, x: chain(layers, numbers, x)


def logistic_step(numbers, x):
    """Return the weights after one step of gradient descent on the mean log loss."""
    import jax

    error = jax.nn.sigmoid(x @ numbers["w"] + numbers["b"]) - numbers["y"]
    return {"w": numbers["w"] - x.T @ error * (RATE / len(x)), "b": numbers["b"] - error.sum(0) * (RATE / len(x))}


def mlp_step(numbers, x):
    """Return the weights after one step of gradient descent on the mean cross-entropy of a softmax."""
    import jax
    from jax import numpy as jnp

    first = x @ numbers["w0"] + numbers["b0"]
    open0 = first > 0
    hidden0 = jnp.where(open0, first, 0.0)
    second = hidden0 @ numbers["w1"] + numbers["b1"]
    open1 = second > 0
    hidden1 = jnp.where(open1, second, 0.0)
    error2 = (jax.nn.softmax(hidden1 @ numbers["w2"] + numbers["b2"]) - numbers["y"]) * (1 / len(x))
    error1 = jnp.where(open1, error2 @ numbers["w2"].T, 0.0)
    error0 = jnp.where(open0, error1 @ numbers["w1"].T, 0.0)
    found = {}
    for place, (inputs, error) in enumerate(((x, error0), (hidden0, error1), (hidden1, error2))):
        found[f"w{place}"] = numbers[f"w{place}"] - inputs.T @ error * RATE
        found[f"b{place}"] = numbers[f"b{place}"] - error.sum(0) * RATE
    return found


def prepared(job):
    """Return the function, its numbers by name and the input of every call."""
    arrays = dict(np.load(job["arrays"]))
    x = arrays.pop("x").astype(np.float32)
    if job["task"] != "infer":
        return {"logistic_step": logistic_step, "mlp_step": mlp_step}[job["task"]], arrays, x
    numbers = to_channels_last(job["layers"], arrays)
    return network(job["layers"]), numbers, x.transpose(0, 2, 3, 1) if x.ndim == 4 else x


# --- one party --------------------------------------------------------------------------------------------------------


class Party:
    """One process of the computation: its link, its runtime, and how arrays become shares of all."""

    def __init__(self, job, rank):
        from spu import libspu

        self.lib, self.rank, self.world = libspu, rank, PARTIES[job["protocol"]]
        desc = libspu.link.Desc()
        desc.recv_timeout_ms = 300_000
        desc.http_timeout_ms = 120_000
        for number, address in enumerate(job["addresses"][rank]):
            desc.add_party(f"party{number}", address)
        self.link = libspu.link.create_brpc(desc, rank)

    def _config(self, protocol, profiled):
        lib = self.lib
        config = lib.RuntimeConfig(lib.ProtocolKind.__members__[protocol], lib.FieldType.FM64, FRACTION_BITS)
        config.experimental_enable_colocated_optimization = protocol == "CHEETAH"
        config.enable_pphlo_profile = profiled
        if protocol == "SEMI2K":
            config.beaver_type = lib.RuntimeConfig.BeaverType.TrustedFirstParty
        return config

    def start(self, protocol, profiled):
        """Take a new runtime; a profiled one logs what it sends."""
        from spu.api import Io, Runtime

        config = self._config(protocol, profiled)
        self.io, self.runtime = Io(self.world, config), Runtime(self.link, config)
        self.colocated = protocol == "CHEETAH"

    def give(self, name, array, owner):
        """Share an array of one party among all; return the bytes that left it."""
        sent = 0
        if self.rank == owner:
            secret, holder = self.lib.Visibility.VIS_SECRET, owner if self.colocated else -1
            shares = self.io.make_shares(np.asarray(array), secret, holder)
            for other in range(self.world):
                if other != owner:
                    body = packed(shares[other])
                    self.link.send_async(other, body)
                    sent += len(body)
            share = shares[owner]
        else:
            share = self.unpacked(self.link.recv(owner))
        self.runtime.set_var(name, share)
        return sent

    def take(self, name):
        """Open a value to the first party; return it there, and the bytes that this party sent."""
        share = self.runtime.get_var(name)
        if self.rank:
            body = packed(share)
            self.link.send_async(0, body)
            return None, len(body)
        shares = [share, *(self.unpacked(self.link.recv(other)) for other in range(1, self.world))]
        return self.io.reconstruct(shares), 0

    def unpacked(self, body):
        """Return the share that `packed` wrote."""
        share = self.lib.Share()
        share.meta, share.share_chunks = pickle.loads(body)  # of a process that was started beside this one
        return share


def packed(share):
    """Return a share as bytes."""
    return pickle.dumps((share.meta, list(share.share_chunks)))


def compiled(party, function, numbers, x):
    """Return the program, the names of its outputs, and the seconds that it took."""
    from spu.utils import frontend

    begin, names, outputs = time.perf_counter(), sorted(numbers), []

    def flat(*values):
        return function(dict(zip(names, values[:-1], strict=True)), values[-1])

    def named(found):
        outputs.extend(f"out{number}" for number in range(len(found)))
        return outputs

    values, kinds = [*(numbers[name] for name in names), x], [party.lib.Visibility.VIS_SECRET] * (len(names) + 1)
    program, _ = frontend.compile(frontend.Kind.JAX, flat, values, {}, [*names, "x"], kinds, named)
    return program, outputs, time.perf_counter() - begin


def run_party(job, rank):
    """Compute all calls as one party; the first prints what it found, and all what their calls sent."""
    function, numbers, x = prepared(job)
    rows, step = job["rows"], job["task"] != "infer"
    numbers = {name: np.asarray(value, np.float32) for name, value in numbers.items()}
    begin = time.perf_counter()
    party = Party(job, rank)
    program, outputs, compile_seconds = compiled(party, function, numbers, x[:rows])
    found = {"compile_seconds": compile_seconds, "seconds": [], "cpu_seconds": [], "outputs": []}
    for profiled in (False, True):
        party.start(job["protocol"], profiled)
        for name in sorted(numbers):
            party.give(name, numbers[name], 1)
        if step:
            party.give("x", x[:rows], 0)
        found.setdefault("setup_seconds", time.perf_counter() - begin - compile_seconds)
        for call in range(1 + job["counted"] if profiled else job["warm"] + job["repeats"]):
            first = call * rows % len(x)
            party.link.barrier()
            begin, own, sent = time.perf_counter(), time.process_time(), 0
            if not step:
                sent += party.give("x", x[first : first + rows], 0)
            party.runtime.run(program)
            values = []
            if not step:
                value, opened = party.take(outputs[0])
                values, sent = [value], sent + opened
            found["sharing_bytes"] = sent
            if not profiled:
                found["seconds"].append(time.perf_counter() - begin)
                found["cpu_seconds"].append(time.process_time() - own)
                found["outputs"] += [value.tolist() for value in values if value is not None]
        if step and not profiled:
            opened = [party.take(name)[0] for name in outputs]
            found["outputs"] = [value.tolist() for value in opened if value is not None]
    party.link.barrier()
    party.link.stop_link()
    return found


# --- all parties ------------------------------------------------------------------------------------------------------

_LINK = re.compile(r"total send bytes (\d+), recv bytes (\d+), send actions (\d+)")


def waited(runs, seconds):
    """Return the exit codes; what still runs after some seconds, or beside one that failed, is ended."""
    end = time.monotonic() + seconds
    try:
        while None in (codes := [run.poll() for run in runs]) and not any(codes) and time.monotonic() < end:
            time.sleep(0.05)
    finally:
        for run in runs:
            run.kill()
    return codes


def run_all(job):
    """Start a process for each party; return what the first found, with the bytes and messages of all."""
    world = PARTIES[job["protocol"]]
    with tempfile.TemporaryDirectory() as folder:
        place = Path(folder) / "job.json"
        place.write_text(json.dumps(job))
        command = [sys.executable, __file__, "--party"]
        logs, runs = [Path(folder) / f"{rank}.log" for rank in range(world)], []
        for rank, log in enumerate(logs):
            with log.open("w") as file:
                tail = [str(rank), str(place), str(Path(folder) / f"{rank}.json")]
                runs.append(subprocess.Popen([*command, *tail], stdout=file, stderr=subprocess.STDOUT))
        codes = waited(runs, job["seconds"])
        texts = [log.read_text(errors="replace") for log in logs]
        if any(code != 0 for code in codes):
            failed = "\n".join(text[-600:] for code, text in zip(codes, texts, strict=True) if code)
            raise SystemExit(failed or f"no answer in {job['seconds']:.0f} s")
        parts = [json.loads((Path(folder) / f"{rank}.json").read_text()) for rank in range(world)]
    calls = [[[int(number) for number in call] for call in _LINK.findall(text)] for text in texts]
    found = parts[0]
    found["cpu_seconds"] = [sum(one) for one in zip(*(part["cpu_seconds"] for part in parts), strict=True)]
    found["sharing_bytes"] = sum(part["sharing_bytes"] for part in parts)
    found["first_bytes"] = sum(call[0][0] for call in calls) + found["sharing_bytes"]
    counted = [call[1:] for call in calls]  # the first makes what later ones use
    found["bytes"] = sum(sum(one[0] for one in call) / len(call) for call in counted) + found["sharing_bytes"]
    found["send_actions"] = sum(sum(one[2] for one in call) / len(call) for call in counted)
    return found


def end_with_parent():
    """Have Linux end this process when the one that started it ends."""
    ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def main():
    end_with_parent()
    if sys.argv[1:2] == ["--party"]:
        rank, job, out = int(sys.argv[2]), json.loads(Path(sys.argv[3]).read_text()), Path(sys.argv[4])
        out.write_text(json.dumps(run_party(job, rank)))
        return
    json.dump(run_all(json.load(sys.stdin)), sys.stdout)


if __name__ == "__main__":
    main()
