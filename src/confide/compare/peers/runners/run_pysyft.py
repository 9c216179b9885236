"""PySyft: each party is a data site in this process, an analyst asks each to run a training, its owner approves.

One request at each site, which trains on its own records for as many passes as the job has rounds; the analyst averages
what the sites release, weighted by their records. A further round would be a further request of other code at each.
"""

import contextlib
import importlib.metadata
import sys
import time
import warnings

import exchange
import numpy as np


def version():
    warnings.simplefilter("ignore")
    with contextlib.redirect_stdout(sys.stderr):
        import syft  # noqa: F401 (that it can be imported)

    return importlib.metadata.version("syft")


def local_training(x, y, start, plan):
    """Train at a site; PySyft takes this function's source, so it stands alone."""
    import numpy as np

    passes, batch, rate, seed, hidden, features, outputs = (float(one) for one in plan)
    sizes = (
        [(hidden, features), (hidden,), (outputs, hidden), (outputs,)] if hidden else [(outputs, features), (outputs,)]
    )
    parts, at = [], 0
    for shape in sizes:
        shape = tuple(int(one) for one in shape)
        count = int(np.prod(shape))
        parts.append(np.array(start[at : at + count], dtype=float).reshape(shape))
        at += count
    draw = np.random.RandomState(int(seed))
    x, y = np.array(x), np.array(y)
    for _ in range(int(passes)):
        order = draw.permutation(len(x))
        for first in range(0, len(x), int(batch)):
            rows, wanted = x[order[first : first + int(batch)]], y[order[first : first + int(batch)]]
            inner = rows @ parts[0].T + parts[1] if hidden else None
            last = inner * inner if hidden else rows
            logits = last @ parts[-2].T + parts[-1]
            back = (1 / (1 + np.exp(-np.clip(logits, -700, 700))) - wanted) / len(rows)
            deeper = (back @ parts[-2]) * 2 * inner if hidden else None
            parts[-2] = parts[-2] - rate * back.T @ last
            parts[-1] = parts[-1] - rate * back.sum(0)
            if hidden:
                parts[0] = parts[0] - rate * deeper.T @ rows
                parts[1] = parts[1] - rate * deeper.sum(0)
    return np.concatenate([part.ravel() for part in parts])


def train(task, arrays):
    import syft as sy

    network, begin = exchange.Network(exchange.dense(task, arrays)), time.perf_counter()
    start = np.concatenate([part.ravel() for part in network.parameters])
    linear = [parts for kind, parts in exchange.dense(task, arrays) if kind == "Linear"]
    hidden = len(linear[0][1]) if len(linear) == 2 else 0
    plan = [task["rounds"], task["batch"], task["learning_rate"], task["seed"]]
    plan += [hidden, arrays["x_test"].shape[1], task["outputs"]]
    with contextlib.redirect_stdout(sys.stderr):
        sites = [site(sy, number, *records) for number, records in enumerate(exchange.parties(task, arrays))]
        setup, released, counts = time.perf_counter() - begin, [], []
        begin = time.perf_counter()
        for (owner, guest), (x, _) in zip(sites, exchange.parties(task, arrays), strict=True):
            records = guest.datasets[0].assets
            given = {
                "x": records[0],
                "y": records[1],
                "start": sy.ActionObject.from_obj(start).send(guest),
                "plan": sy.ActionObject.from_obj(np.array(plan, float)).send(guest),
            }
            guest.code.request_code_execution(sy.syft_function_single_use(**given)(local_training))
            owner.requests[-1].approve()
            released.append(np.asarray(guest.code.local_training(**given).get(), float))
            counts.append(len(x))
        seconds = time.perf_counter() - begin
    mean, at = np.average(released, axis=0, weights=counts), 0
    for part in network.parameters:
        part[...] = mean[at : at + part.size].reshape(part.shape)
        at += part.size
    predictions = network.predict(arrays["x_test"]).tolist()
    found = {"predictions": predictions, "curve": [predictions], "rounds": 1}
    return found | {"setup_seconds": setup, "train_seconds": seconds}


def site(sy, number, x, y):
    """Return clients of a new site with one party's records: its owner's, and the analyst's."""
    server = sy.orchestra.launch(
        name=f"party{number}", dev_mode=False, reset=True, create_producer=False, n_consumers=0
    )
    owner = server.login(email="info@openmined.org", password="changethis")
    account = {"email": "analyst@example.org", "password": "of the analyst"}
    owner.register(name="analyst", password_verify=account["password"], **account)
    assets = [
        sy.Asset(name=name, data=data, mock=np.zeros_like(data), mock_is_real=False)
        for name, data in (("x", x), ("y", y))
    ]
    owner.upload_dataset(sy.Dataset(name="records", asset_list=assets))
    return owner, server.login(**account)


if __name__ == "__main__":
    exchange.run(version, training=train)
