"""Concrete ML 1.9.0 on one model, one row at a time, through its client and its server. Runs in its own environment.

Reads a JSON object from standard input: `kind` (logistic or trees), `arrays`, an .npz with `x` and `y` to train or
quantise with and `rows` to ask for, for a logistic regression `weight` (1, features) and `bias` (1,), for trees `held`,
rows whose decisions are compared with those of the ensemble before it was quantised; `bits`; for trees `trees` and
`depth`; `p_error` of a look-up, without it the default of Concrete ML; `warm`, `repeats`; `train_only`.
Writes one with the seconds of client and server for each row, those of compilation and key generation, sizes, the
outputs before the sigmoid, what Concrete's compiler says of errors, and the trees as nodes with their `margins`, the
sums for `rows`. Serialising and loading on both sides counts, as it does in a service; the keys are at the server.
"""

import contextlib
import json
import resource
import sys
import tempfile
import time

import numpy as np
import xgboost
from concrete import fhe
from concrete.ml.deployment import FHEModelClient, FHEModelDev, FHEModelServer
from concrete.ml.sklearn import LogisticRegression, XGBClassifier
from sklearn.linear_model import LogisticRegression as PlainLogistic


def logistic(job, arrays):
    """Return Concrete's quantised form of the regression whose weights are given."""
    plain = PlainLogistic(max_iter=1).fit(arrays["x"], arrays["y"])
    plain.coef_, plain.intercept_ = arrays["weight"].astype(float), arrays["bias"].astype(float)
    return plain, LogisticRegression.from_sklearn_model(plain, arrays["x"], n_bits=job["bits"])


def boosted(job, arrays):
    """Return an ensemble of XGBoost 1.6.2 and Concrete's quantised form of it."""
    options = {"n_estimators": job["trees"], "max_depth": job["depth"], "n_jobs": 1, "random_state": 0}
    plain = xgboost.XGBClassifier(**options, use_label_encoder=False, eval_metric="logloss")
    plain.fit(arrays["x"], arrays["y"])
    return plain, None if job.get("train_only") else XGBClassifier.from_sklearn_model(
        plain, arrays["x"], n_bits=job["bits"]
    )


def nodes(plain):
    """Return the trees as XGBoost writes them: a record goes left if its feature, as float32, is below the split."""
    model = json.loads(plain.get_booster().save_raw("json"))["learner"]
    names = ("left_children", "right_children", "split_indices", "split_conditions")
    trees = [{name: tree[name] for name in names} for tree in model["gradient_booster"]["model"]["trees"]]
    return {"trees": trees, "base_score": float(model["learner_model_param"]["base_score"])}


def logit(probability):
    """Return the value before the sigmoid."""
    return float(np.log(probability) - np.log1p(-probability))


def times(job, model, rows):
    """Return what a client and a server measured."""
    found = {"encrypt_seconds": [], "server_seconds": [], "decrypt_seconds": [], "outputs": []}
    with tempfile.TemporaryDirectory() as folder:
        FHEModelDev(folder, model).save()
        client, server = FHEModelClient(folder), FHEModelServer(folder)
        begin = time.perf_counter()
        client.generate_private_and_evaluation_keys(force=True)
        found["keygen_seconds"] = time.perf_counter() - begin
        uploaded = client.get_serialized_evaluation_keys()
        found["keys_bytes"] = len(uploaded)
        keys = fhe.EvaluationKeys.deserialize(uploaded)
        for number in range(job["warm"] + job["repeats"]):
            row = rows[number % len(rows)][None, :]
            begin = time.perf_counter()
            query = client.quantize_encrypt_serialize(row)
            sent = time.perf_counter()
            reply = server.run(query, keys)
            answered = time.perf_counter()
            output = client.deserialize_decrypt_dequantize(reply)
            done = time.perf_counter()
            found["encrypt_seconds"].append(sent - begin)
            found["server_seconds"].append(answered - sent)
            found["decrypt_seconds"].append(done - answered)
            found["outputs"].append(logit(output[0, 1]))
            found["query_bytes"], found["reply_bytes"] = len(query), len(reply)
    return found


def main():
    job = json.load(sys.stdin)
    arrays = np.load(job["arrays"])
    with contextlib.redirect_stdout(sys.stderr):
        plain, model = {"logistic": logistic, "trees": boosted}[job["kind"]](job, arrays)
        found = {}
        if job["kind"] == "trees":
            found["ensemble"] = nodes(plain)
            found["margins"] = plain.predict(arrays["rows"], output_margin=True).tolist()
        if model is not None:
            begin = time.perf_counter()
            options = {"p_error": job["p_error"]} if "p_error" in job else {}
            circuit = model.compile(arrays["x"], **options)
            found["compile_seconds"] = time.perf_counter() - begin
            found |= times(job, model, arrays["rows"])
            found["statistics"] = {
                name: getattr(circuit, name)
                for name in ("p_error", "global_p_error", "complexity", "programmable_bootstrap_count")
            }
            if "held" in arrays:
                same = model.predict(arrays["held"], fhe="disable") == plain.predict(arrays["held"])
                found["fidelity"] = float(same.mean())
        found["memory_bytes"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss << 10
    json.dump(found, sys.stdout)


if __name__ == "__main__":
    main()
