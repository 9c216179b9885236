"""TenSEAL 0.3.18 on one model, one row at a time: what it costs without a network. Runs in its own environment.

Reads a JSON object from standard input: `poly_modulus_degree`, `coeff_mod_bit_sizes`, `scale_bits`, `layers` (weight
matrices and biases, outputs by inputs; squares in between), `rows`, `repeats`. Writes one with the seconds of client
and server per row, sizes in bytes and the outputs before the sigmoid. Serialising and loading on both sides counts, as
it does in a service; keys are at the server already.
"""

import json
import sys
import time

import tenseal as ts


def main() -> None:
    job = json.load(sys.stdin)
    begin = time.perf_counter()
    context = ts.context(
        ts.SCHEME_TYPE.CKKS,
        poly_modulus_degree=job["poly_modulus_degree"],
        coeff_mod_bit_sizes=job["coeff_mod_bit_sizes"],
    )
    context.global_scale = 2 ** job["scale_bits"]
    context.generate_galois_keys()
    public = context.serialize(save_secret_key=False)
    keygen = time.perf_counter() - begin
    server = ts.context_from(public)
    layers = [(list(map(list, zip(*layer["weight"], strict=True))), layer["bias"]) for layer in job["layers"]]
    found = {
        "keys_bytes": len(public),
        "keygen_seconds": keygen,
        "client_seconds": [],
        "server_seconds": [],
        "outputs": [],
    }

    for number in range(job["repeats"]):
        row = job["rows"][number % len(job["rows"])]
        begin = time.perf_counter()
        query = ts.ckks_vector(context, row).serialize()
        sent = time.perf_counter()
        value = ts.ckks_vector_from(server, query)
        for place, (weight, bias) in enumerate(layers):
            if place:
                value.square_()
            one = len(bias) == 1
            value = (value.dot([weights[0] for weights in weight]) if one else value.mm(weight)) + bias
        reply = value.serialize()
        answered = time.perf_counter()
        output = ts.ckks_vector_from(context, reply).decrypt()[: len(layers[-1][1])]
        done = time.perf_counter()
        found["client_seconds"].append(sent - begin + done - answered)
        found["server_seconds"].append(answered - sent)
        found["outputs"].append(output)
        found["query_bytes"], found["reply_bytes"] = len(query), len(reply)
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
