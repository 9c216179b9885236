"""TenSEAL on a dense network with squares, one row at a time. Serialising on both sides counts, as in a service.

Parameters follow from the depth: 40 bits for each product and 60 at both ends, in the smallest ring at 128 bits, or
fewer bits where that saves a ring twice as large. Under "smallest" they are the least that do the job. Keys are at the
server already; a row's products are TenSEAL's own `dot` and `mm`.
"""

import importlib.metadata
import time

import exchange

#: Bits of the whole modulus at 128 bits of security, by ring degree.
LIMITS = {8192: 218, 16384: 438, 32768: 881}


def version():
    import tenseal  # noqa: F401 (that it can be imported)

    return importlib.metadata.version("tenseal")


def parameters(task):
    """Return the ring's degree, the bits of its primes, and those of the scale."""
    depth = len(task["layers"])
    if task["smallest"]:
        if depth > 1:
            raise SystemExit("the same as peer:tenseal for this model: the smallest ring has room for one product")
        return 4096, [40, 20, 40], 20
    for degree, limit in LIMITS.items():
        for middle in (40, 38, 35) if degree == 8192 else (40,):
            ends = min(60, middle + 20) if middle == 40 else middle + 7
            bits = [ends, *[middle] * depth, ends]
            if sum(bits) <= limit:
                return degree, bits, middle
    raise SystemExit(f"a network of {depth} products in a row is too deep for TenSEAL, which does not bootstrap")


def infer(task, arrays):
    import tenseal as ts

    begin = time.perf_counter()
    degree, bits, scale = parameters(task)
    context = ts.context(ts.SCHEME_TYPE.CKKS, poly_modulus_degree=degree, coeff_mod_bit_sizes=bits)
    context.global_scale = 2**scale
    context.generate_galois_keys()
    public = context.serialize(save_secret_key=False)
    server = ts.context_from(public)
    layers = [(kind, [part.T.tolist() for part in parts]) for kind, parts in exchange.dense(task, arrays)]
    found = {"of": "logits", "setup_seconds": time.perf_counter() - begin, "key_bytes": len(public)}
    found |= {"client_seconds": [], "server_seconds": [], "outputs": []}
    for row in exchange.until_enough(task, arrays["x"]):
        begin = time.perf_counter()
        query = ts.ckks_vector(context, row.tolist()).serialize()
        sent = time.perf_counter()
        value = ts.ckks_vector_from(server, query)
        for kind, parts in layers:
            if kind == "Square":
                value.square_()
            elif len(parts[1]) == 1:
                value = value.dot([weights[0] for weights in parts[0]]) + parts[1]
            else:
                value = value.mm(parts[0]) + parts[1]
        reply = value.serialize()
        answered = time.perf_counter()
        output = ts.ckks_vector_from(context, reply).decrypt()[: task["outputs"]]
        done = time.perf_counter()
        found["client_seconds"].append(sent - begin + done - answered)
        found["server_seconds"].append(answered - sent)
        found["outputs"].append(output)
        found |= {"query_bytes": len(query), "reply_bytes": len(reply)}
    return found


if __name__ == "__main__":
    exchange.run(version, inference=infer)
